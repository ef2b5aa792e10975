// Attention of one sequence with kernel.cpp, on the threads of libtorch: other threads would wait for a core until libtorch's
// have stopped spinning. Returns null, or the text of an error that the caller frees.

#include "kernel.h"

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <stdexcept>

using at::Tensor;
using flow_attention::Sequence;

namespace {

// Runs work(0) to work(count - 1), each on the next free thread. libtorch's header would begin a parallel region of the
// compiler's own OpenMP library, so an operation inside libtorch does it: one over as many elements as there are threads.
template <class Work>
void parallel(int64_t count, const Work &work) {
    std::atomic<int64_t> next{0};
    Tensor threads = at::empty({std::min<int64_t>(at::get_num_threads(), count)}, at::kByte);
    auto loop = [&](char **, const int64_t *, int64_t, int64_t) {
        for (int64_t unit; (unit = next.fetch_add(1)) < count;) work(unit);
    };
    at::TensorIterator::nullary_op(threads).for_each(loop, 1);
}

const uint16_t *begin(const Tensor &tensor) {
    return static_cast<const uint16_t *>(tensor.const_data_ptr());
}

}  // namespace

// q, out: [rows, heads, D]; k, v: [keys, kv_heads, D]; mask: [rows, keys] or null. All in bf16, the last dimension dense.
extern "C" char *flow_cpu_attention(const Tensor *q, const Tensor *k, const Tensor *v, const Tensor *mask, int causal,
                                    const Tensor *out) {
    try {
        Sequence s{};
        s.q = begin(*q), s.k = begin(*k), s.v = begin(*v);
        s.out = static_cast<uint16_t *>(out->mutable_data_ptr());
        s.q_row = q->stride(0), s.q_head = q->stride(1);
        s.k_row = k->stride(0), s.k_head = k->stride(1);
        s.v_row = v->stride(0), s.v_head = v->stride(1);
        s.out_row = out->stride(0), s.out_head = out->stride(1);
        if (mask) s.mask = begin(*mask), s.mask_row = mask->stride(0);
        s.rows = q->size(0), s.heads = q->size(1), s.dim = q->size(2);
        s.keys = k->size(0), s.kv_heads = k->size(1);
        s.causal = causal != 0;
        Tensor packed = at::empty({2, s.pack_units(), s.dim / 2, flow_attention::KEYS}, at::kInt);
        s.packed_k = static_cast<uint32_t *>(packed.mutable_data_ptr());
        s.packed_v = s.packed_k + packed.numel() / 2;
        std::atomic<bool> complete{true};
        parallel(s.pack_units(), [&](int64_t unit) { flow_attention::pack(s, unit); });
        parallel(s.attend_units(), [&](int64_t unit) {
            if (!flow_attention::attend(s, unit)) complete = false;
        });
        if (!complete) throw std::runtime_error("attention: not enough memory for the scores of six queries");
        return nullptr;
    } catch (const std::exception &error) {
        return strdup(error.what());
    }
}
