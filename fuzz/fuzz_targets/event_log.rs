#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vfio_user_tpm_fuzz::event_log::run(data));
