use std::process::ExitCode;

fn main() -> ExitCode {
    moqa::cli::main()
}
