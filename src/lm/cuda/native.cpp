// What tch does not expose of libtorch: attention forward passes that also return what their backward passes need, the
// switch for deterministic kernels, and the allocator's statistics. Each function returns null, or the text of an error
// that the caller frees.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <cstdint>
#include <cstring>
#include <exception>

using at::Tensor;

namespace {

template <class Work>
char *guarded(Work work) {
    try {
        work();
        return nullptr;
    } catch (const std::exception &error) {
        return strdup(error.what());
    }
}

}  // namespace

extern "C" {

// q [Tq, heads, D], k and v [Tk, kv_heads, D], cumulative lengths i32. results: output, logsumexp, random state, unused.
char *flow_flash_attention(const Tensor *q, const Tensor *k, const Tensor *v, const Tensor *cumulative_q,
                           const Tensor *cumulative_k, int64_t longest_q, int64_t longest_k, int causal,
                           Tensor **results) {
    return guarded([&] {
        auto [output, logsumexp, random, unused, mask] = at::_flash_attention_forward(
            *q, *k, *v, *cumulative_q, *cumulative_k, longest_q, longest_k, 0.0, causal != 0, false);
        results[0] = new Tensor(output);
        results[1] = new Tensor(logsumexp);
        results[2] = new Tensor(random);
        results[3] = new Tensor(unused);
    });
}

// q [B, heads, S, D], k and v [B, kv_heads, S, D], causal. results: output, logsumexp, random seed and offset.
char *flow_cudnn_attention(const Tensor *q, const Tensor *k, const Tensor *v, int gradient, Tensor **results) {
    return guarded([&] {
        auto found = at::_scaled_dot_product_cudnn_attention(*q, *k, *v, {}, gradient != 0, 0.0, true, false);
        results[0] = new Tensor(std::get<0>(found));
        results[1] = new Tensor(std::get<1>(found));
        results[2] = new Tensor(std::get<6>(found));
        results[3] = new Tensor(std::get<7>(found));
    });
}

// Whether operations that have a deterministic kernel must use it; returns what was set before.
int flow_deterministic(int on) {
    auto &context = at::globalContext();
    int before = context.deterministicAlgorithms();
    // Where operations are only warned about, attention stays as it is.
    context.setDeterministicAlgorithms(on != 0, false);
    return before;
}

// Bytes of device memory held by tensors and reserved from the driver: {now, peak, reserved now, reserved peak}.
char *flow_memory(int device, int64_t *bytes) {
    return guarded([&] {
        auto stats = c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(device));
        // Index 0 sums the pools of small and large blocks.
        bytes[0] = stats.allocated_bytes[0].current;
        bytes[1] = stats.allocated_bytes[0].peak;
        bytes[2] = stats.reserved_bytes[0].current;
        bytes[3] = stats.reserved_bytes[0].peak;
    });
}

// Starts new peaks.
char *flow_reset_memory_peak(int device) {
    return guarded(
        [&] { c10::getDeviceAllocator(at::kCUDA)->resetPeakStats(static_cast<c10::DeviceIndex>(device)); });
}

// Gives memory that no tensor holds back to the driver.
char *flow_empty_cache() {
    return guarded([&] { c10::getDeviceAllocator(at::kCUDA)->emptyCache(); });
}
}
