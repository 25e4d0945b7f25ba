//! The kernels compiled on this machine, by NVRTC, from the source that was built in.

use super::Purpose;
use super::libraries;
use super::sources::{HEADERS, SOURCE};
use crate::error::{Error, Result, Status};
use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};
use std::ffi::{CStr, CString, c_char};

/// What to compile for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Architecture {
    major: i32,
    minor: i32,
}

impl Architecture {
    pub(super) fn of((major, minor): (i32, i32)) -> Self {
        Architecture { major, minor }
    }

    /// The name of its machine code: with the instructions that only this architecture has, where the kernels use them.
    fn machine(self) -> String {
        match (self.major, self.minor) {
            (9, 0) => "sm_90a".to_owned(),
            (major, minor) => format!("sm_{major}{minor}"),
        }
    }

    fn number(self) -> i32 {
        self.major * 10 + self.minor
    }
}

/// Options besides the architecture. Products and roots are written with the intrinsics that round once; nothing flushes
/// denormals.
/// NVRTC takes generic lambdas for host functions unless told that all is for the device.
const OPTIONS: [&str; 4] = ["--std=c++17", "--ftz=false", "--prec-sqrt=true", "-default-device"];

fn failed(doing: &str, result: nvrtcResult) -> Error {
    // SAFETY: it returns a constant C string for any number.
    let text = unsafe { CStr::from_ptr(sys::nvrtcGetErrorString(result)) }.to_string_lossy();
    Error::new(Status::Unsupported, format!("libnvrtc cannot {doing}: {text}"))
}

fn check(result: nvrtcResult, doing: &str) -> Result<()> {
    if result == nvrtcResult::NVRTC_SUCCESS { Ok(()) } else { Err(failed(doing, result)) }
}

/// Kernels ready to be compiled.
#[derive(Debug)]
pub(super) struct Compiler {
    /// Of libnvrtc.
    version: (i32, i32),
    /// `--gpu-architecture` and the others.
    options: Vec<String>,
    /// Whether it makes machine code, or PTX that the driver translates.
    machine_code: bool,
}

impl Compiler {
    /// The compiler of the kernels that `purpose` needs, for an architecture: of machine code if it knows the architecture, of PTX of the newest one that it
    /// knows, where the device is newer.
    ///
    /// # Errors
    /// [`Status::Unsupported`], saying what is missing.
    pub(super) fn open(architecture: Architecture, purpose: Purpose) -> Result<Self> {
        let version = libraries::nvrtc()?;
        let known = known_architectures()?;
        let (target, machine_code) = if known.contains(&architecture.number()) {
            (architecture.machine(), true)
        } else {
            let Some(newest) = known.iter().filter(|number| **number < architecture.number()).max() else {
                return Err(Error::new(
                    Status::Unsupported,
                    format!(
                        "libnvrtc {}.{} knows no architecture up to {}",
                        version.0,
                        version.1,
                        architecture.machine()
                    ),
                ));
            };
            (format!("compute_{newest}"), false)
        };
        let mut options = vec![format!("--gpu-architecture={target}")];
        options.extend(OPTIONS.map(str::to_owned));
        if purpose == Purpose::Encode {
            options.push("--define-macro=KRONSAE_ENCODE_ONLY".to_owned());
        }
        Ok(Compiler { version, options, machine_code })
    }

    /// All that the result depends on, for its name in the cache.
    pub(super) fn parts(&self) -> Vec<String> {
        let version = format!("nvrtc {}.{}", self.version.0, self.version.1);
        let headers = HEADERS.iter().flat_map(|(name, text)| [(*name).to_owned(), (*text).to_owned()]);
        [version, SOURCE.to_owned()].into_iter().chain(self.options.iter().cloned()).chain(headers).collect()
    }

    /// Compiles: some seconds.
    ///
    /// # Errors
    /// [`Status::Unsupported`] with the compiler's words.
    pub(super) fn compile(&self) -> Result<Vec<u8>> {
        let text = |text: &str| CString::new(text).map_err(|_| Error::invalid("the kernels' source has a NUL inside"));
        let source = text(SOURCE)?;
        let mut names = Vec::new();
        let mut texts = Vec::new();
        for (name, content) in HEADERS {
            names.push(text(name)?);
            texts.push(text(content)?);
        }
        let pointers = |of: &[CString]| of.iter().map(|text| text.as_ptr()).collect::<Vec<*const c_char>>();
        let (names_at, texts_at) = (pointers(&names), pointers(&texts));
        let mut program = Program(std::ptr::null_mut());
        // SAFETY: all strings live until the call returns, which copies them; there are as many names as texts.
        let created = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program.0,
                source.as_ptr(),
                c"kronsae.cu".as_ptr(),
                names_at.len() as i32,
                texts_at.as_ptr(),
                names_at.as_ptr(),
            )
        };
        check(created, "take the kernels' source")?;
        let options = self.options.iter().map(|option| text(option)).collect::<Result<Vec<_>>>()?;
        let options_at = pointers(&options);
        // SAFETY: a live program; the options live until the call returns.
        let result = unsafe { sys::nvrtcCompileProgram(program.0, options_at.len() as i32, options_at.as_ptr()) };
        if result != nvrtcResult::NVRTC_SUCCESS {
            return Err(failed("compile the kernels", result).within_log(&program.log()));
        }
        program.result(self.machine_code)
    }
}

impl Error {
    /// With the last lines of a compiler's log behind the message.
    fn within_log(self, log: &str) -> Self {
        let log = log.trim();
        let from = log.char_indices().rev().nth(2000).map_or(0, |(at, _)| at);
        Error::new(self.status(), format!("{}:\n{}", self.message(), &log[from..]))
    }
}

/// Architectures that the library makes machine code for, as 90 for 9.0.
fn known_architectures() -> Result<Vec<i32>> {
    let mut count = 0;
    // SAFETY: it writes one number.
    check(unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut count) }, "count the architectures it knows")?;
    let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: it writes as many numbers as it said.
    check(unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) }, "list the architectures it knows")?;
    Ok(known)
}

struct Program(nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: created once, destroyed once.
            let _ = unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
        }
    }
}

impl Program {
    fn log(&self) -> String {
        let mut bytes = 0;
        // SAFETY: a live program; it writes one number, then as many bytes as it said.
        unsafe {
            if sys::nvrtcGetProgramLogSize(self.0, &raw mut bytes) != nvrtcResult::NVRTC_SUCCESS {
                return String::new();
            }
            let mut log = vec![0_u8; bytes];
            if sys::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) != nvrtcResult::NVRTC_SUCCESS {
                return String::new();
            }
            String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned()
        }
    }

    fn result(&self, machine_code: bool) -> Result<Vec<u8>> {
        let doing = "hand over what it compiled";
        let mut bytes = 0;
        // SAFETY: a live program that was compiled; it writes one number, then as many bytes as it said.
        unsafe {
            if machine_code {
                check(sys::nvrtcGetCUBINSize(self.0, &raw mut bytes), doing)?;
            } else {
                check(sys::nvrtcGetPTXSize(self.0, &raw mut bytes), doing)?;
            }
            let mut out = vec![0_u8; bytes];
            if machine_code {
                check(sys::nvrtcGetCUBIN(self.0, out.as_mut_ptr().cast()), doing)?;
            } else {
                check(sys::nvrtcGetPTX(self.0, out.as_mut_ptr().cast()), doing)?;
            }
            Ok(out)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sources::{ENCODE_KERNELS, TRAINING_KERNELS};
    use super::*;

    /// With NVIDIA's own compiler, and no header but those that were built in.
    #[test]
    #[ignore = "needs libnvrtc: cargo xtask test --only cuda-compile"]
    fn every_kernel_compiles_for_every_architecture() {
        let holds = |image: &[u8], text: &str| image.windows(text.len()).any(|part| part == text.as_bytes());
        for capability in [(8, 0), (9, 0), (10, 0)] {
            for purpose in [Purpose::Encode, Purpose::Train] {
                let compiler = Compiler::open(Architecture::of(capability), purpose).unwrap();
                assert!(compiler.machine_code, "{capability:?}");
                let started = std::time::Instant::now();
                let image = compiler.compile().unwrap();
                println!("{capability:?} {purpose:?}: {:.1} s, {} bytes", started.elapsed().as_secs_f64(), image.len());
                assert!(image.starts_with(b"\x7FELF"), "{capability:?}");
                for kernel in ENCODE_KERNELS {
                    assert!(holds(&image, kernel), "{capability:?}, {purpose:?} has no {kernel}");
                }
                for kernel in TRAINING_KERNELS {
                    assert_eq!(
                        holds(&image, kernel),
                        purpose == Purpose::Train,
                        "{capability:?}, {purpose:?}: {kernel}"
                    );
                }
            }
        }
        // A device that is newer than the compiler gets PTX, which the driver translates.
        let compiler = Compiler::open(Architecture::of((99, 0)), Purpose::Encode).unwrap();
        assert!(!compiler.machine_code);
        let text = compiler.compile().unwrap();
        assert!(holds(&text, ".version") && text.ends_with(&[0]));
    }
}
