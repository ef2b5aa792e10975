//! `fused.cpp` and `kernel.cpp`: attention without gradient by the bf16 products of AVX-512. Scores and their exponentials stay
//! in f32 and in the cache.

use std::ffi::{c_char, c_int};
use std::ptr;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::Seen;
use crate::lm::LmError;
use crate::lm::cuda::check_native;

#[expect(unsafe_code, reason = "declares what fused.cpp defines")]
unsafe extern "C" {
    fn flow_cpu_attention(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        mask: *const C_tensor,
        causal: c_int,
        out: *const C_tensor,
    ) -> *mut c_char;
}

/// Fewer queries are left to libtorch, which starts its threads once for them.
const FEWEST: i64 = 32;

/// Whether [`attend`] is there for these queries [n, heads, D] on this processor, and pays.
pub(super) fn pays(q: &Tensor) -> bool {
    q.device() == Device::Cpu
        && q.kind() == Kind::BFloat16
        && q.size()[0] >= FEWEST
        && q.size()[2] % 16 == 0
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
}

/// `q`: [n, heads, D]; `k`, `v`: [L, kv_heads, D], in bf16 on the CPU, heads a multiple of kv_heads and D of 16. Returns
/// [n, heads, D].
///
/// # Errors
/// No memory.
pub(super) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, seen: Seen) -> Result<Tensor, LmError> {
    let dense = |x: &Tensor| match x.stride().last() {
        Some(1) => x.shallow_clone(),
        _ => x.contiguous(),
    };
    let (q, k, v) = (dense(q), dense(k), dense(v));
    let mask = match seen {
        Seen::Masked(mask) => Some(dense(mask)),
        Seen::All | Seen::Causal => None,
    };
    // The kernel reads as much as these sizes say.
    let (queries, keys) = (q.size(), k.size());
    let whole_groups = queries[1] % keys[1] == 0;
    assert!(whole_groups && keys == v.size() && queries[2] == keys[2]);
    assert!([&k, &v].iter().all(|x| x.kind() == q.kind()));
    if let Some(mask) = &mask {
        assert!(mask.size() == [queries[0], keys[0]] && mask.kind() == q.kind());
    }
    assert!(!matches!(seen, Seen::Causal) || queries[0] <= keys[0]);

    let out = Tensor::f_empty(&queries, (q.kind(), q.device()))?;
    #[expect(
        unsafe_code,
        reason = "all pointers are to living tensors of the sizes above"
    )]
    let failure = unsafe {
        flow_cpu_attention(
            q.as_ptr(),
            k.as_ptr(),
            v.as_ptr(),
            mask.as_ref().map_or(ptr::null(), |mask| mask.as_ptr()),
            c_int::from(matches!(seen, Seen::Causal)),
            out.as_ptr(),
        )
    };
    check_native(failure)?;
    Ok(out)
}
