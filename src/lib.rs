#[cfg(feature = "torch")]
pub mod lm;
