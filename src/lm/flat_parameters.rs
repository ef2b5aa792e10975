//! Trainable tensors laid end to end in one, so that an optimizer step is a few operations however many there are.

use tch::{Device, Kind, Tensor};

use super::adamw::BLOCK;

/// Where one tensor lies.
pub struct Slot {
    pub name: String,
    pub shape: Vec<i64>,
    offset: i64,
}

/// Named f32 tensors in one flat f32 tensor. Each starts at a multiple of [`BLOCK`]; the gaps between them stay unread.
pub struct FlatParameters {
    slots: Vec<Slot>,
    /// f32 [len].
    values: Tensor,
    /// f32 [len].
    gradients: Tensor,
    large: i64,
}

impl FlatParameters {
    /// Lays out zeros of the given shapes: tensors of at least `large` elements first, then the others.
    pub fn zeros(shapes: Vec<(String, Vec<i64>)>, large: i64, device: Device) -> Self {
        let mut slots: Vec<Slot> = shapes
            .into_iter()
            .map(|(name, shape)| Slot {
                name,
                shape,
                offset: 0,
            })
            .collect();
        let mut end = 0;
        let mut boundary = 0;
        for leading in [true, false] {
            for slot in slots
                .iter_mut()
                .filter(|slot| (slot.numel() >= large) == leading)
            {
                slot.offset = end;
                end += (slot.numel() + BLOCK - 1) / BLOCK * BLOCK;
            }
            if leading {
                boundary = end;
            }
        }
        Self {
            slots,
            values: Tensor::zeros([end], (Kind::Float, device)),
            gradients: Tensor::zeros([end], (Kind::Float, device)),
            large: boundary,
        }
    }

    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// f32 [len]; a handle to the same memory.
    pub fn values(&self) -> Tensor {
        self.values.shallow_clone()
    }

    /// f32 [len]; a handle to the same memory.
    pub fn gradients(&self) -> Tensor {
        self.gradients.shallow_clone()
    }

    /// The elements that the large tensors take, from the start.
    pub fn large(&self) -> i64 {
        self.large
    }

    /// The element at which a slot starts.
    pub fn offset(&self, slot: usize) -> i64 {
        self.slots[slot].offset
    }

    /// The part of a flat tensor of this layout that belongs to a slot, in its shape and sharing memory.
    pub fn view(&self, flat: &Tensor, slot: usize) -> Tensor {
        let slot = &self.slots[slot];
        flat.narrow(0, slot.offset, slot.numel())
            .view(slot.shape.as_slice())
    }

    pub fn value(&self, slot: usize) -> Tensor {
        self.view(&self.values, slot)
    }

    pub fn gradient(&self, slot: usize) -> Tensor {
        self.view(&self.gradients, slot)
    }
}

impl Slot {
    fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_tensors_come_first_and_views_share_memory() {
        let shapes = vec![
            ("small".to_owned(), vec![3]),
            ("large".to_owned(), vec![2, 300]),
        ];
        let flat = FlatParameters::zeros(shapes, 500, Device::Cpu);
        assert_eq!(flat.values().size(), [768 + 256]);
        assert_eq!(flat.large(), 768);
        let _ = flat.value(0).fill_(1.0);
        assert_eq!(flat.values().double_value(&[768]), 1.0);
        assert_eq!(flat.value(1).size(), [2, 300]);
        assert_eq!(flat.values().sum(Kind::Float).double_value(&[]), 3.0);
    }
}
