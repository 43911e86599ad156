//! What a guest sends is messages, whatever it is.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aegis_fs::fuzz::messages(bytes));
