//! The program: see [`vfio_user_tpm`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vfio_user_tpm::cli::main()
}
