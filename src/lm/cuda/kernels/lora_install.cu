// The parameters of an adapter in f32 as the bf16 operands that a fused linear layer computes with.

// One part of a fused layer.
struct Part {
    // The first output row, output rows, where A [rank, in] and B [out, rank] start among the parameters.
    long long row, out, a, b;
};

struct Parts {
    Part part[4];
    long long count, rank;
};

// a [low, in] and its transpose at [in, low]: part p's rows start at p · rank, the rest is zero.
extern "C" __global__ void __launch_bounds__(256)
    lora_install_a(const float *parameters, bf16 *a, bf16 *at, int in, int low, const __grid_constant__ Parts parts) {
    int column = blockIdx.x * 256 + threadIdx.x;
    if (column >= in) return;
    int part = blockIdx.y / (int)parts.rank, rank = blockIdx.y % (int)parts.rank;
    bf16 value = 0;
    if (part < parts.count) value = to_bf16(parameters[parts.part[part].a + (u64)rank * in + column]);
    a[(u64)blockIdx.y * in + column] = value;
    at[(u64)column * low + blockIdx.y] = value;
}

// The last `low` columns of a weight [out, ..] whose rows are `stride` apart: scale · B of each part on its own columns.
extern "C" __global__ void __launch_bounds__(256)
    lora_install_b(const float *parameters, bf16 *b, int stride, int out, int low, float scale,
                   const __grid_constant__ Parts parts) {
    u64 index = (u64)blockIdx.x * 256 + threadIdx.x;
    long long row = index / low;
    int column = index % low, part = column / (int)parts.rank, rank = column % (int)parts.rank;
    if (row >= out) return;
    float value = 0.0f;
    if (part < parts.count) {
        const Part &own = parts.part[part];
        if (row >= own.row && row < own.row + own.out)
            value = parameters[own.b + (row - own.row) * parts.rank + rank] * scale;
    }
    b[row * stride + column] = to_bf16(value);
}
