//! 4-bit NormalFloat weights with double quantisation (Dettmers et al. 2023, arXiv:2305.14314), in the layout of
//! bitsandbytes: blocks of 64 over the row-major weight, element 2i in the high nibble, scales optionally quantised
//! again to 8 bits around their mean.

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::dynamic_map::{DynamicMap, lookup};
use super::weights::Nf4Parts;
use super::{LmError, dtype};

/// The 16 values, the quantiles of a normal distribution scaled to [-1, 1] (appendix E of the paper).
pub const NF4_VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];
const BLOCK: i64 = 64;
/// Scales that share one scale of their own.
const NESTED_BLOCK: i64 = 256;
/// Blocks encoded or decoded at a time, which bounds the temporaries to some tens of MiB.
const CHUNK: i64 = 1 << 16;

/// A weight [out, in] at 4 bits an element.
pub struct Nf4 {
    /// u8 [ceil(n / 2)].
    packed: Tensor,
    scales: Scales,
    /// f32 [16].
    values: Tensor,
    block: i64,
    shape: [i64; 2],
    /// The kind that the weight had and that bitsandbytes decodes it to.
    kind: Kind,
}

/// The tensors of an [`Nf4`].
pub struct Nf4Operands<'a> {
    /// u8 [ceil(n / 2)].
    pub packed: &'a Tensor,
    /// f32 [16].
    pub values: &'a Tensor,
    pub block: i64,
    /// f32 [blocks], or u8 where they are quantised again.
    pub scales: &'a Tensor,
    pub nested: Option<NestedScales<'a>>,
}

/// How quantised scales are decoded: map[code] · absmax[index / block] + offset.
pub struct NestedScales<'a> {
    pub absmax: &'a Tensor,
    pub map: &'a Tensor,
    pub offset: f64,
    pub block: i64,
}

enum Scales {
    /// f32 [blocks].
    Single(Tensor),
    Double {
        /// u8 [blocks].
        codes: Tensor,
        /// f32 [ceil(blocks / nested block)].
        absmax: Tensor,
        /// f32 [256].
        map: Tensor,
        offset: f64,
        block: i64,
    },
}

impl Nf4 {
    /// Quantises a weight [out, in] of any float kind. `double` quantises the scales too, to 0.127 bits a weight
    /// instead of 0.5.
    pub fn encode(weight: &Tensor, double: bool) -> Result<Self, LmError> {
        let [out, input] = weight.size()[..] else {
            unreachable!("a linear weight has two dimensions")
        };
        let device = weight.device();
        let flat = weight.f_contiguous()?.f_view([-1])?;
        let whole = flat.size()[0] / BLOCK * BLOCK;
        let values = Tensor::from_slice(&NF4_VALUES).to_device(device);
        let middles = (values.narrow(0, 0, 15) + values.narrow(0, 1, 15)) / 2.0;

        let (mut packed, mut absmax) = (Vec::new(), Vec::new());
        for start in (0..whole).step_by((CHUNK * BLOCK) as usize) {
            let length = (whole - start).min(CHUNK * BLOCK);
            let blocks = flat
                .f_narrow(0, start, length)?
                .f_to_kind(Kind::Float)?
                .f_view([-1, BLOCK])?;
            let scales = blocks.f_abs()?.f_amax([1], true)?;
            let scaled = blocks * scales.clamp_min(1e-38).reciprocal();
            packed.push(pack(&scaled.f_view([-1])?, &middles)?);
            absmax.push(scales.f_view([-1])?);
        }
        if whole < flat.size()[0] {
            let rest = flat
                .f_narrow(0, whole, flat.size()[0] - whole)?
                .f_to_kind(Kind::Float)?;
            let scale = rest.f_abs()?.f_max()?.f_clamp_min(1e-38)?;
            packed.push(pack(&rest.f_div(&scale)?, &middles)?);
            absmax.push(scale.f_view([1])?);
        }
        let absmax = Tensor::f_cat(&absmax, 0)?;
        Ok(Self {
            packed: Tensor::f_cat(&packed, 0)?,
            scales: match double {
                true => Scales::double(&absmax)?,
                false => Scales::Single(absmax),
            },
            values,
            block: BLOCK,
            shape: [out, input],
            kind: weight.kind(),
        })
    }

    /// Takes over a weight of a bitsandbytes checkpoint; `Err` says what does not fit.
    pub fn from_parts(parts: Nf4Parts, device: Device) -> Result<Self, String> {
        let number = |key: &str| parts.state[key].as_i64().filter(|&number| number > 0);
        let block = number("blocksize").ok_or("no `blocksize`")?;
        let shape: Option<Vec<i64>> = parts.state["shape"]
            .as_array()
            .map(|shape| shape.iter().filter_map(Value::as_i64).collect());
        let Some(&[out, input]) = shape.as_deref() else {
            return Err("`shape` is not that of a matrix".to_owned());
        };
        let kind = parts.state["dtype"]
            .as_str()
            .and_then(dtype::kind)
            .ok_or("unknown `dtype`")?;
        let (elements, blocks) = (out * input, ceil(out * input, block));
        let expect = |what: &str, tensor: &Tensor, kind: Kind, numel: i64| {
            let fits = tensor.kind() == kind && tensor.numel() as i64 == numel;
            fits.then_some(())
                .ok_or_else(|| format!("`{what}` does not fit a weight of {out} × {input}"))
        };
        expect("weight", &parts.packed, Kind::Uint8, ceil(elements, 2))?;
        expect("quant_map", &parts.quant_map, Kind::Float, 16)?;
        let to = |tensor: &Tensor| tensor.flatten(0, -1).to_device(device);
        let scales = match &parts.nested {
            None => {
                expect("absmax", &parts.absmax, Kind::Float, blocks)?;
                Scales::Single(to(&parts.absmax))
            }
            Some((absmax, map)) => {
                let block = number("nested_blocksize").ok_or("no `nested_blocksize`")?;
                expect("absmax", &parts.absmax, Kind::Uint8, blocks)?;
                expect("nested_absmax", absmax, Kind::Float, ceil(blocks, block))?;
                expect("nested_quant_map", map, Kind::Float, 256)?;
                Scales::Double {
                    codes: to(&parts.absmax),
                    absmax: to(absmax),
                    map: to(map),
                    offset: parts.state["nested_offset"]
                        .as_f64()
                        .ok_or("no `nested_offset`")?,
                    block,
                }
            }
        };
        Ok(Self {
            packed: to(&parts.packed),
            scales,
            values: to(&parts.quant_map),
            block,
            shape: [out, input],
            kind,
        })
    }

    /// The tensors and the state that bitsandbytes stores for this weight, on the CPU.
    pub fn to_parts(&self) -> Nf4Parts {
        let host = |tensor: &Tensor| tensor.to_device(Device::Cpu);
        let mut state = json!({
            "quant_type": "nf4",
            "blocksize": self.block,
            "dtype": dtype::name(self.kind),
            "shape": self.shape,
        });
        let (absmax, nested) = match &self.scales {
            Scales::Single(absmax) => (host(absmax), None),
            Scales::Double {
                codes,
                absmax,
                map,
                offset,
                block,
            } => {
                state["nested_blocksize"] = json!(block);
                state["nested_dtype"] = json!("float32");
                state["nested_offset"] = json!(offset);
                (host(codes), Some((host(absmax), host(map))))
            }
        };
        Nf4Parts {
            packed: host(&self.packed).unsqueeze(1),
            absmax,
            quant_map: host(&self.values),
            nested,
            state,
        }
    }

    /// [out, in] in `kind`: each value times its scale in f32, then rounded once.
    pub fn decode(&self, kind: Kind) -> Tensor {
        let elements = self.shape[0] * self.shape[1];
        let scales = self.scales.decode();
        // A byte names two elements, so one look-up in a table of 256 pairs decodes both.
        let pairs = Tensor::stack(
            &[
                self.values
                    .unsqueeze(1)
                    .expand([16, 16], false)
                    .flatten(0, -1),
                self.values.repeat([16]),
            ],
            1,
        );
        let step = CHUNK * self.block;
        let pieces: Vec<Tensor> = (0..elements)
            .step_by(step as usize)
            .map(|start| {
                let length = (elements - start).min(step);
                let bytes = self.packed.narrow(0, start / 2, ceil(length, 2));
                let values = pairs
                    .index_select(0, &bytes.to_kind(Kind::Int))
                    .flatten(0, -1)
                    .narrow(0, 0, length);
                let scales = scales.narrow(0, start / self.block, ceil(length, self.block));
                scale_blocks(&values, &scales, self.block).to_kind(kind)
            })
            .collect();
        Tensor::cat(&pieces, 0).view(self.shape)
    }

    pub fn shape(&self) -> [i64; 2] {
        self.shape
    }

    /// What a kernel decodes the weight from.
    pub fn operands(&self) -> Nf4Operands<'_> {
        let (scales, nested) = match &self.scales {
            Scales::Single(scales) => (scales, None),
            Scales::Double {
                codes,
                absmax,
                map,
                offset,
                block,
            } => (
                codes,
                Some(NestedScales {
                    absmax,
                    map,
                    offset: *offset,
                    block: *block,
                }),
            ),
        };
        Nf4Operands {
            packed: &self.packed,
            values: &self.values,
            block: self.block,
            scales,
            nested,
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let size = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        size(&self.packed)
            + match &self.scales {
                Scales::Single(absmax) => size(absmax),
                Scales::Double { codes, absmax, .. } => size(codes) + size(absmax),
            }
    }
}

impl Scales {
    fn double(absmax: &Tensor) -> Result<Self, LmError> {
        // A GPU adds up in another order; the bits are those of the CPU wherever a weight lies.
        let offset = absmax.f_to_device(Device::Cpu)?.f_mean(Kind::Float)?;
        let blocks = absmax.size()[0];
        let padding = ceil(blocks, NESTED_BLOCK) * NESTED_BLOCK - blocks;
        let centred = (absmax - &offset)
            .f_constant_pad_nd([0, padding])?
            .f_view([-1, NESTED_BLOCK])?;
        let map = DynamicMap::signed(absmax.device());
        let (codes, nested) = map.quantize(&centred);
        Ok(Self::Double {
            codes: codes.f_view([-1])?.f_narrow(0, 0, blocks)?,
            absmax: nested,
            map: map.values().shallow_clone(),
            offset: offset.double_value(&[]),
            block: NESTED_BLOCK,
        })
    }

    /// f32 [blocks].
    fn decode(&self) -> Tensor {
        match self {
            Self::Single(absmax) => absmax.shallow_clone(),
            Self::Double {
                codes,
                absmax,
                map,
                offset,
                block,
            } => scale_blocks(&lookup(map, codes), absmax, *block) + *offset,
        }
    }
}

/// Nearest code of each value (ties to the lower one), two to a byte. `scaled`: f32 [n] within [-1, 1].
fn pack(scaled: &Tensor, middles: &Tensor) -> Result<Tensor, LmError> {
    let odd = scaled.size()[0] % 2;
    let codes = scaled
        .f_constant_pad_nd([0, odd])?
        .f_bucketize(middles, true, false)?
        .f_to_kind(Kind::Uint8)?
        .f_view([-1, 2])?;
    Ok(codes.select(1, 0) * 16 + codes.select(1, 1))
}

/// `values[i] · scales[i / block]` for values [n] and scales [ceil(n / block)].
fn scale_blocks(values: &Tensor, scales: &Tensor, block: i64) -> Tensor {
    let length = values.size()[0];
    let padding = scales.size()[0] * block - length;
    if padding == 0 {
        return (values.view([-1, block]) * scales.unsqueeze(1)).view([-1]);
    }
    let padded = values.constant_pad_nd([0, padding]).view([-1, block]);
    (padded * scales.unsqueeze(1))
        .view([-1])
        .narrow(0, 0, length)
}

fn ceil(numerator: i64, denominator: i64) -> i64 {
    (numerator + denominator - 1) / denominator
}
