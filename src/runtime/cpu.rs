//! Refuses to start on a CPU that lacks the instructions ggml and this program were compiled for.
//!
//! The check runs from `.preinit_array`, before any C++ constructor or Rust code that may have been
//! compiled to such instructions, so that an older machine sees a message and not an illegal instruction.

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// Names of the compiled-in features this CPU (or its operating system) lacks, as bits of [`NAMES`].
    #[inline(never)]
    fn missing_bits() -> u32 {
        let max_leaf = __cpuid(0).eax;
        let l1 = __cpuid(1);
        let bit = |reg: u32, n: u32| (reg >> n) & 1 == 1;
        let osxsave = bit(l1.ecx, 27);
        let ymm_saved = osxsave && {
            // SAFETY: OSXSAVE says that XGETBV exists.
            let xcr0 = unsafe { xgetbv0() };
            xcr0 & 6 == 6
        };
        let l7_ebx = if max_leaf >= 7 {
            __cpuid_count(7, 0).ebx
        } else {
            0
        };
        let present = [
            bit(l1.ecx, 28) && ymm_saved,
            bit(l7_ebx, 5) && ymm_saved,
            bit(l1.ecx, 12) && ymm_saved,
            bit(l1.ecx, 29) && ymm_saved,
            bit(l7_ebx, 8),
        ];
        let mut missing = 0;
        let mut i = 0;
        while i < present.len() {
            if !present[i] {
                missing |= 1 << i;
            }
            i += 1;
        }
        missing
    }

    const NAMES: [&str; 5] = ["AVX", "AVX2", "FMA", "F16C", "BMI2"];

    #[target_feature(enable = "xsave")]
    unsafe fn xgetbv0() -> u64 {
        // SAFETY: the caller checked OSXSAVE.
        unsafe { _xgetbv(0) }
    }

    pub fn missing() -> Vec<&'static str> {
        let bits = missing_bits();
        (0..NAMES.len())
            .filter(|i| (bits >> i) & 1 == 1)
            .map(|i| NAMES[i])
            .collect()
    }

    #[cfg(target_os = "linux")]
    extern "C" fn refuse_old_cpu() {
        const MESSAGE: &[u8] = b"moqa: this build needs a CPU with AVX2, FMA, F16C and BMI2 (x86-64-v3, Intel Haswell or AMD Zen and later), \
and this CPU or its operating system lacks at least one of them. Nothing was done. Run moqa on a newer machine.\n";
        if missing_bits() != 0 {
            // SAFETY: plain system calls on a static buffer; no destructors are wanted this early.
            unsafe {
                libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len());
                libc::_exit(1);
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[used]
    #[unsafe(link_section = ".preinit_array")]
    static REFUSE_OLD_CPU: extern "C" fn() = refuse_old_cpu;
}

/// The x86-64 features that this build needs and this CPU lacks; empty elsewhere.
pub fn cpu_features_missing() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        x86::missing()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Vec::new()
    }
}
