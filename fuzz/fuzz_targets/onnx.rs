#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fedpeft_hostile::onnx(bytes));
