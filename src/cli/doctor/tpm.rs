//! Does a TPM start? One is, as the server starts it, and is asked what it is. It has no state, and is gone then.

use std::time::{Duration, Instant};

use log::LevelFilter;

use super::report::Finding;
use crate::backend::embedded::{Embedded, EmbeddedTpm};
use crate::backend::passthrough::properties;
use crate::backend::synchronous::{Patience, Synchronous, SynchronousError};
use crate::cli::sandbox_args::SandboxArgs;
use crate::cli::worker;
use crate::tpm::TpmVersion;

#[derive(Debug)]
pub(super) struct Tpm {
    version: TpmVersion,
    /// What answered, and after how long.
    answer: Result<(Option<TpmVersion>, Duration), SynchronousError>,
}

pub(super) fn gather(version: TpmVersion, sandbox: &SandboxArgs, patience: Duration) -> Tpm {
    let backend = Embedded::new(EmbeddedTpm { version, state: None }, worker::program(LevelFilter::Error, sandbox));
    let mut tpm = Synchronous::new(backend, Patience { limit: patience, interrupt: None });
    let began = Instant::now();
    let answer = properties(&mut tpm).map(|found| (found.map(|found| found.version), began.elapsed()));
    Tpm { version, answer }
}

pub(super) fn judge(tpm: &Tpm) -> Finding {
    let name = match tpm.version {
        TpmVersion::V2_0 => "TPM 2.0",
        TpmVersion::V1_2 => "TPM 1.2",
    };
    match &tpm.answer {
        Ok((found, time)) if *found == Some(tpm.version) => {
            Finding::ok(name, format!("starts in a confined process and answers, after {} ms", time.as_millis()))
        }
        Ok(_) => Finding::problem(
            name,
            format!("what starts does not answer as a TPM {}", tpm.version),
            "look at libtpms: another build of it may be in the way (ldd shows which one is used)",
        ),
        Err(error) => Finding::problem(
            name,
            format!("does not start: {error}"),
            "what its process said is above. If it is the confinement, --sandbox=landlock or --sandbox=none shows it here as \
             well as when serving",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;
    use crate::backend::BackendError;

    fn level(answer: Result<Option<TpmVersion>, SynchronousError>) -> Level {
        let answer = answer.map(|found| (found, Duration::from_millis(20)));
        judge(&Tpm { version: TpmVersion::V2_0, answer }).level()
    }

    #[test]
    fn only_the_tpm_that_was_asked_for_is_good() {
        assert_eq!(level(Ok(Some(TpmVersion::V2_0))), Level::Ok);
        assert_eq!(level(Ok(Some(TpmVersion::V1_2))), Level::Problem);
        assert_eq!(level(Ok(None)), Level::Problem);
        assert_eq!(level(Err(BackendError::Gone("its process has ended".to_owned()).into())), Level::Problem);
        assert_eq!(level(Err(SynchronousError::NoAnswer(Duration::from_secs(1)))), Level::Problem);
    }
}
