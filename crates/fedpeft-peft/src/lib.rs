//! Parameter-efficient fine-tuning methods as graph surgery.
