#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fedpeft_hostile::hugging_face(bytes));
