// The dropout mask as a tensor, for the generic path: 0 or `kept`.

extern "C" __global__ void __launch_bounds__(256)
    dropout_mask(float *mask, long long count, float kept, u64 seed, unsigned threshold) {
    long long word = (long long)blockIdx.x * 256 + threadIdx.x;
    u64 bits = splitmix64(seed, word);
#pragma unroll
    for (int i = 0; i < 4; i++, bits >>= 16)
        if (word * 4 + i < count) mask[word * 4 + i] = (bits & 0xffff) >= threshold ? kept : 0.0f;
}
