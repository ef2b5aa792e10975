// Root mean square norm with the residual sum before it, and its backward pass with the one after it.
// HIDDEN: elements of a row, a multiple of 8. A row belongs to one warp, a long one to a block of four.

#define WARPS (HIDDEN <= 1024 ? 1 : 4)
#define LANES (WARPS * 32)
#define VECTORS ((HIDDEN / 8 + LANES - 1) / LANES)
#define ROW (blockIdx.x * (128 / LANES) + threadIdx.x / LANES)

// sum = x + y (x alone where y is null); out = sum / rms(sum) · weight. Rows of `out` are `out_stride` apart; `sum` may
// be null, x or y. `largest` [rows], unless it is null, gets the largest magnitude of each row of `out`.
extern "C" __global__ void __launch_bounds__(128)
    add_norm(const bf16 *x, const bf16 *y, const bf16 *weight, bf16 *sum, bf16 *out, int out_stride, int rows, float eps,
             float *largest) {
    __shared__ float scratch[8];
    int row = ROW, lane = threadIdx.x % LANES;
    bool real = row < rows;
    float values[VECTORS][8], squares = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        int column = (v * LANES + lane) * 8;
        if (!real || column >= HIDDEN) continue;
        u64 place = (u64)row * HIDDEN + column;
        unpack(*(const uint4 *)(x + place), values[v]);
        if (y) {
            float other[8];
            unpack(*(const uint4 *)(y + place), other);
#pragma unroll
            for (int i = 0; i < 8; i++) values[v][i] = rounded(values[v][i] + other[i]);
        }
        if (sum) *(uint4 *)(sum + place) = pack(values[v]);
#pragma unroll
        for (int i = 0; i < 8; i++) squares += values[v][i] * values[v][i];
    }
    float inverse = rsqrtf(warps_sum<WARPS>(squares, scratch) / HIDDEN + eps), most = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        int column = (v * LANES + lane) * 8;
        if (!real || column >= HIDDEN) continue;
        float w[8];
        unpack(*(const uint4 *)(weight + column), w);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            values[v][i] = rounded(values[v][i] * inverse) * w[i];
            most = fmaxf(most, fabsf(values[v][i]));
        }
        *(uint4 *)(out + (u64)row * out_stride + column) = pack(values[v]);
    }
    if (!largest) return;
    most = warps_max<WARPS>(most, scratch + 4);
    if (real && lane == 0) largest[row] = rounded(most);
}

// dx = residual + the gradient of the norm at `x` for `dy`; `residual` may be null or dx. The normed rows are made again
// for whoever needs them, unless `normed` is null. `largest` as above, of dx.
extern "C" __global__ void __launch_bounds__(128)
    norm_backward(const bf16 *x, const bf16 *weight, const bf16 *dy, int dy_stride, const bf16 *residual, bf16 *dx,
                  bf16 *normed, int normed_stride, int rows, float eps, float *largest) {
    __shared__ float scratch[12];
    int row = ROW, lane = threadIdx.x % LANES;
    bool real = row < rows;
    uint4 inputs[VECTORS], gradients[VECTORS];
    float squares = 0.0f, products = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        int column = (v * LANES + lane) * 8;
        if (!real || column >= HIDDEN) continue;
        inputs[v] = *(const uint4 *)(x + (u64)row * HIDDEN + column);
        gradients[v] = *(const uint4 *)(dy + (u64)row * dy_stride + column);
        float in[8], g[8], w[8];
        unpack(inputs[v], in), unpack(gradients[v], g), unpack(*(const uint4 *)(weight + column), w);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            squares += in[i] * in[i];
            products += g[i] * w[i] * in[i];
        }
    }
    float inverse = rsqrtf(warps_sum<WARPS>(squares, scratch) / HIDDEN + eps);
    // The mean of (dy · weight · x̂), times the x̂ = x · inverse it is subtracted along.
    float along = warps_sum<WARPS>(products, scratch + 4) / HIDDEN * inverse * inverse, most = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        int column = (v * LANES + lane) * 8;
        if (!real || column >= HIDDEN) continue;
        float in[8], g[8], w[8], out[8], n[8];
        unpack(inputs[v], in), unpack(gradients[v], g), unpack(*(const uint4 *)(weight + column), w);
        u64 place = (u64)row * HIDDEN + column;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            out[i] = inverse * (g[i] * w[i] - in[i] * along);
            n[i] = rounded(in[i] * inverse) * w[i];
        }
        if (residual) {
            float add[8];
            unpack(*(const uint4 *)(residual + place), add);
#pragma unroll
            for (int i = 0; i < 8; i++) out[i] += add[i];
        }
        *(uint4 *)(dx + place) = pack(out);
        if (normed) *(uint4 *)(normed + (u64)row * normed_stride + column) = pack(n);
#pragma unroll
        for (int i = 0; i < 8; i++) most = fmaxf(most, fabsf(out[i]));
    }
    if (!largest) return;
    most = warps_max<WARPS>(most, scratch + 8);
    if (real && lane == 0) largest[row] = rounded(most);
}
