#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| leitstand_fuzz::config(data));
