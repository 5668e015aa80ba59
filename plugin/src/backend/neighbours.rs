//! What else is in the process: the registry that asks us, libllama, GPU devices. From it follows whether the headers of
//! mixed files may be opened.

use std::ffi::{CStr, CString};

use ggml_backend_sys as sys;

use crate::host::Host;
use crate::host::symbols::{Registry, Seen, registries};
use crate::log::{debug, error, fatal};

/// llama.cpp's variable that keeps experts in main memory.
const CPU_EXPERTS: &str = "LLAMA_ARG_CPU_MOE";

/// Lets the program read the headers that `moqa run` made for it, if the experts of every model that it loads come to
/// this library.
pub fn open_stand_ins(host: &'static Host) {
    static OPENED: std::sync::Once = std::sync::Once::new();
    OPENED.call_once(|| {
        if std::env::var_os(moqa_mixed::stand_in::ENVIRONMENT).is_none_or(|list| list.is_empty()) {
            return;
        }
        if let Err(reason) = asked_by_llama(host).and_then(|()| no_gpu_asked_first(host)) {
            fatal(format_args!(
                "the header of a mixed file stays closed: {reason}"
            ));
            return;
        }
        match moqa_mixed::stand_in::open_stand_ins() {
            Ok(0) => {}
            Ok(n) => debug!("{n} headers of mixed files opened"),
            Err(e) => error!("the header of a mixed file stays closed: {e}"),
        }
    });
}

/// Whether the libllama of this process knows of us. One that uses another copy of ggml's registry would load the model
/// and leave it to its CPU backend; one that comes later may.
fn asked_by_llama(host: &'static Host) -> Result<(), String> {
    let seen = registries();
    let (ours, others): (Vec<_>, Vec<_>) = seen
        .iter()
        .filter(|s| s.by_llama)
        .partition(|s| has_us(host, &s.registry));
    let name = |path: &CString| match path.to_bytes() {
        [] => "the program".to_owned(),
        path => String::from_utf8_lossy(path).into_owned(),
    };
    match (ours.as_slice(), others.as_slice()) {
        ([_, ..], []) => Ok(()),
        (_, [other, ..]) => Err(format!(
            "this library was loaded into one copy of ggml's registry ({}), and {} uses another. Call \
             ggml_backend_load_all of the one that libllama uses; in Python that is \
             llama_cpp.llama_cpp._lib.ggml_backend_load_all()",
            seen.iter()
                .find(|s| !s.by_llama && has_us(host, &s.registry))
                .map_or("?".to_owned(), |s| name(&s.path)),
            name(&other.path),
        )),
        ([], []) => Err(
            "there is no libllama in this process yet. Load backends after it, with the registry \
             that it uses"
                .to_owned(),
        ),
    }
}

/// Whether a GPU could get the experts, which would take a mixed tensor for what its type says.
fn no_gpu_asked_first(host: &'static Host) -> Result<(), String> {
    match gpu(host) {
        Some(device) if !experts_stay_on_cpu() => Err(format!(
            "the program has the GPU device {device}, which would take a mixed tensor for what its type says. Set \
             {CPU_EXPERTS}=1 to keep the experts on the CPU; where the program has no --cpu-moe, also give it -ngl 0. \
             Or hide the device (CUDA_VISIBLE_DEVICES=)"
        )),
        _ => Ok(()),
    }
}

/// Whether llama.cpp's programs are told to; the values are those that its arguments take for yes.
fn experts_stay_on_cpu() -> bool {
    matches!(
        std::env::var(CPU_EXPERTS).as_deref(),
        Ok("1" | "on" | "true" | "enabled")
    )
}

/// Whether we are registered.
fn has_us(host: &'static Host, registry: &Registry) -> bool {
    entries(registry).any(|reg| reg == super::reg(host))
}

fn entries(registry: &Registry) -> impl Iterator<Item = sys::ggml_backend_reg_t> + '_ {
    // SAFETY: the entries live as long as they are registered; a host registers on the thread that asks us.
    let count = unsafe { (registry.ggml_backend_reg_count)() };
    (0..count).map(|number| unsafe { (registry.ggml_backend_reg_get)(number) })
}

/// The name of a device to which the host may give layers before it asks for the CPU's. GPU backends are compiled in
/// or loaded before the library that `GGML_BACKEND_PATH` names; one that comes later is not seen.
pub fn gpu(host: &'static Host) -> Option<String> {
    // Without a registry nobody could have asked for our device.
    for Seen { registry, .. } in registries() {
        for reg in entries(&registry) {
            // Our own entry is left out: it waits for this.
            if reg.is_null() || reg == super::reg(host) {
                continue;
            }
            // SAFETY: as in `entries`, and its devices live as long as it does.
            unsafe {
                for number in 0..(host.symbols.ggml_backend_reg_dev_count)(reg) {
                    let device = (host.symbols.ggml_backend_reg_dev_get)(reg, number);
                    if device.is_null() {
                        continue;
                    }
                    let of_type = (host.symbols.ggml_backend_dev_type)(device);
                    if [
                        sys::GGML_BACKEND_DEVICE_TYPE_CPU,
                        sys::GGML_BACKEND_DEVICE_TYPE_ACCEL,
                    ]
                    .contains(&of_type)
                    {
                        continue;
                    }
                    let name = (host.symbols.ggml_backend_dev_name)(device);
                    return Some(if name.is_null() {
                        "?".to_owned()
                    } else {
                        CStr::from_ptr(name).to_string_lossy().into_owned()
                    });
                }
            }
        }
    }
    None
}
