// silu(gate) · up. A row of `gate_up` is [2 · width]; rows of `out` are `out_stride` apart.

extern "C" __global__ void __launch_bounds__(256) swiglu(const bf16 *gate_up, bf16 *out, int width, int out_stride) {
    int column = (blockIdx.y * 256 + threadIdx.x) * 8;
    if (column >= width) return;
    const bf16 *gate = gate_up + (u64)blockIdx.x * 2 * width + column;
    float g[8], u[8];
    unpack(*(const uint4 *)gate, g), unpack(*(const uint4 *)(gate + width), u);
#pragma unroll
    for (int i = 0; i < 8; i++) g[i] = rounded(g[i] / (1.0f + __expf(-g[i]))) * u[i];
    *(uint4 *)(out + (u64)blockIdx.x * out_stride + column) = pack(g);
}
