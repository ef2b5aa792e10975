//! How a benchmark of inference rounds the linear layers.

use clap::ValueEnum;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Quant {
    Nf4,
    /// e4m3 with a scale per row, multiplied as such by GPUs that can
    Fp8,
    Int8,
    Bf16,
}

impl Quant {
    #[cfg_attr(
        not(feature = "torch"),
        expect(dead_code, reason = "read by the language-model runtime")
    )]
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    #[cfg(feature = "torch")]
    pub fn quantization(self) -> crate::lm::Quantization {
        use crate::lm::Quantization;
        match self {
            Self::Nf4 => Quantization::Nf4,
            Self::Fp8 => Quantization::Fp8,
            Self::Int8 => Quantization::Int8,
            Self::Bf16 => Quantization::None,
        }
    }
}
