// What stands around a convolution of the generators, fused: style, noise, bias, leaky ReLU,
// residual; the same behind the 2x FIR filter of StyleGAN2; and its demodulation factors.
#include "../kernel.cuh"

// activate(v) = clamp(leaky(v * gain + shift + strength * noise + bias) * scale) + residual.
// Null pointers leave their term out.
struct Epilogue {
    const void* gain;       // (batch, channels) T, times (gain_add + gain)
    const void* shift;      // (batch, channels) T
    const void* bias;       // (channels,) T
    const void* noise;      // (batch or 1, height, width) T
    const void* strength;   // (1,) T, of the noise
    const void* residual;   // (batch, channels, height, width) T
    i64 gain_batch, shift_batch, noise_batch, noise_row;  // elements
    i64 residual_batch, residual_plane, residual_row;
    float gain_add, slope, scale, limit;  // limit 0: none
};

struct ModulateParams {
    const void* x;     // (batch, channels, height, width) T
    const void* bias;  // (channels,) T, of the convolution before, or null
    void* out;         // (batch, channels, height, width) T
    i64 x_batch, x_plane, x_row, out_batch, out_plane, out_row;  // elements
    int channels, height, width;
    Epilogue e;
};

constexpr int THREADS = 256;
// Packs per thread, one block apart: more loads under way at once.
constexpr int PACKS = 2;

template <class T>
DEVICE float at_or(const void* pointer, i64 index, float missing) {
    return pointer ? to_float(((const T*)pointer)[index]) : missing;
}

// The channel's part of the epilogue, the same for all of its pixels.
struct Channel {
    float gain, shift, strength;
};

template <class T>
DEVICE Channel channel_of(const Epilogue& e, int b, int c) {
    Channel channel;
    channel.gain = e.gain ? e.gain_add + at_or<T>(e.gain, b * e.gain_batch + c, 0.0f) : 1.0f;
    channel.shift = at_or<T>(e.shift, b * e.shift_batch + c, 0.0f) + at_or<T>(e.bias, c, 0.0f);
    channel.strength = e.noise ? at_or<T>(e.strength, 0, 1.0f) : 0.0f;
    return channel;
}

DEVICE float activate(const Epilogue& e, const Channel& c, float v, float noise, float residual) {
    v = v * c.gain + c.shift + c.strength * noise;
    v = (v < 0.0f ? v * e.slope : v) * e.scale;
    if (e.limit > 0.0f) v = clamp(v, -e.limit, e.limit);
    return v + residual;
}

// gridDim.y rows per plane, gridDim.z = batch * channels; dense planes come as one long row.
template <class T>
DEVICE void modulate(const ModulateParams& p) {
    constexpr int N = 16 / sizeof(T);
    threads([&] {
        const int b = blockIdx.z / p.channels, c = blockIdx.z % p.channels, y = blockIdx.y;
        const Epilogue& e = p.e;
        const Channel channel = channel_of<T>(e, b, c);
        const float bias = at_or<T>(p.bias, c, 0.0f);
        const T* x = (const T*)p.x + b * p.x_batch + c * p.x_plane + y * p.x_row;
        T* out = (T*)p.out + b * p.out_batch + c * p.out_plane + y * p.out_row;
        const T* noise = (const T*)e.noise + b * e.noise_batch + y * e.noise_row;
        const T* residual = (const T*)e.residual + b * e.residual_batch + c * e.residual_plane +
                            y * e.residual_row;
#pragma unroll
        for (int k = 0; k < PACKS; ++k) {
            const int first = ((blockIdx.x * PACKS + k) * THREADS + threadIdx.x) * N;
            const int count = p.width - first;
            if (count <= 0) return;
            Pack<T, N> xs = load<T, N>(x + first, count), ns = {}, rs = {};
            if (e.noise) ns = load<T, N>(noise + first, count);
            if (e.residual) rs = load<T, N>(residual + first, count);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                xs.of[i] = As<T>::from(activate(e, channel, to_float(xs.of[i]) + bias,
                                                to_float(ns.of[i]), to_float(rs.of[i])));
            }
            store(out + first, xs, count);
        }
    });
}

KERNEL(modulate_activate_f32, ModulateParams, THREADS) { modulate<float>(p); }
KERNEL(modulate_activate_f16, ModulateParams, THREADS) { modulate<half>(p); }

struct FirParams {
    const void* x;  // (batch, channels, in_height, in_width) T
    void* out;      // (batch, channels, height, width) T
    i64 x_batch, x_plane, x_row, out_batch, out_plane, out_row;  // elements
    int channels, in_height, in_width, height, width;
    int up;   // 1: filter only (behind a transposed convolution), 2: insert zeros, then filter
    int pad;  // zeros before the first sample of the (enlarged) input
    Epilogue e;
};

// One axis of [1, 3, 3, 1] * up / 8 at output i: the inputs it meets and their weights.
struct Fir {
    int first;
    float w[4];  // the last two are 0 for up 2
};

DEVICE Fir fir_of(int i, int up, int pad) {
    const int start = i - pad;
    if (up == 1) return {start, {0.125f, 0.375f, 0.375f, 0.125f}};
    // Every second sample is a zero: two of the four weights remain.
    if (start & 1) return {(start + 1) >> 1, {0.75f, 0.25f, 0.0f, 0.0f}};
    return {start >> 1, {0.25f, 0.75f, 0.0f, 0.0f}};
}

// Output i of a run that begins at an odd (ODD) or even start, from the columns that the run
// meets: which of them is where is known when this is compiled.
template <int UP, bool ODD, int M>
DEVICE float across(const float (&columns)[M], int i) {
    if (UP == 1) {
        // Behind a transposed convolution the filter has to make up for the zeros, too: times 4.
        return 0.5f * (columns[i] + columns[i + 3]) + 1.5f * (columns[i + 1] + columns[i + 2]);
    }
    const bool odd = ODD != ((i & 1) != 0);
    const int first = ODD ? i / 2 : (i + 1) / 2;
    const float a = columns[first], b = columns[first + 1];
    return odd ? 0.75f * a + 0.25f * b : 0.25f * a + 0.75f * b;
}

// A thread makes one pack of a line: it filters the columns that the pack meets from top to
// bottom, then across, so that an input is read about as often as there are lines of the filter.
template <class T, int UP, bool ODD>
DEVICE void fir_pack(const FirParams& p) {
    constexpr int N = 16 / sizeof(T);
    constexpr int M = UP == 1 ? N + 3 : N / 2 + 2;
    const int packs = (p.width + N - 1) / N;
    const int item = blockIdx.x * THREADS + threadIdx.x;
    const int y = item / packs, x = item % packs * N;
    if (y >= p.height) return;
    const int b = blockIdx.z / p.channels, c = blockIdx.z % p.channels;
    const T* in = (const T*)p.x + b * p.x_batch + c * p.x_plane;
    const int start = x - p.pad, first = UP == 1 ? start : (start + ODD) >> 1;
    const Fir fy = fir_of(y, UP, p.pad);
    float columns[M] = {};
#pragma unroll
    for (int j = 0; j < (UP == 1 ? 4 : 2); ++j) {
        const int row = fy.first + j;
        if (row < 0 || row >= p.in_height) continue;
        const T* line = in + row * p.x_row;
#pragma unroll
        for (int k = 0; k < M; ++k) {
            const int column = first + k;
            if (column < 0 || column >= p.in_width) continue;
            columns[k] += fy.w[j] * to_float(line[column]);
        }
    }
    const Epilogue& e = p.e;
    const int count = p.width - x;
    const Channel channel = channel_of<T>(e, b, c);
    Pack<T, N> ns = {}, rs = {}, result;
    if (e.noise) {
        ns = load<T, N>((const T*)e.noise + b * e.noise_batch + y * e.noise_row + x, count);
    }
    if (e.residual) {
        const i64 at = b * e.residual_batch + c * e.residual_plane + y * e.residual_row + x;
        rs = load<T, N>((const T*)e.residual + at, count);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const float v = across<UP, ODD>(columns, i);
        result.of[i] = As<T>::from(activate(e, channel, v, to_float(ns.of[i]), to_float(rs.of[i])));
    }
    store((T*)p.out + b * p.out_batch + c * p.out_plane + y * p.out_row + x, result, count);
}

template <class T>
DEVICE void fir(const FirParams& p) {
    threads([&] {
        if (p.up == 1) {
            fir_pack<T, 1, false>(p);
        } else if (p.pad & 1) {
            fir_pack<T, 2, true>(p);
        } else {
            fir_pack<T, 2, false>(p);
        }
    });
}

KERNEL(fir_activate_f32, FirParams, THREADS) { fir<float>(p); }
KERNEL(fir_activate_f16, FirParams, THREADS) { fir<half>(p); }

struct DemodulateParams {
    const void* squares;  // (outputs, inputs) T: sum over the taps of the squared weights
    const void* style;    // (batch, inputs) T
    void* out;            // (batch, outputs) T
    i64 squares_row, style_row, out_row;  // elements
    int inputs;
    float epsilon;
};

constexpr int LANES = 128;

// out[b, o] = 1 / sqrt(sum_i squares[o, i] style[b, i]^2 + epsilon); a block for each o and b.
template <class T>
DEVICE void demodulate(const DemodulateParams& p) {
    SHARED float sums[LANES];
    const int o = blockIdx.x, b = blockIdx.y;
    threads([&] {
        const T* squares = (const T*)p.squares + o * p.squares_row;
        const T* style = (const T*)p.style + b * p.style_row;
        float sum = 0.0f;
        for (int i = threadIdx.x; i < p.inputs; i += LANES) {
            const float s = to_float(style[i]);
            sum += to_float(squares[i]) * s * s;
        }
        sums[threadIdx.x] = sum;
    });
    barrier();
    for (int reach = LANES / 2; reach > 0; reach /= 2) {
        threads([&] {
            if ((int)threadIdx.x < reach) sums[threadIdx.x] += sums[threadIdx.x + reach];
        });
        barrier();
    }
    threads([&] {
        if (threadIdx.x == 0) {
            ((T*)p.out)[b * p.out_row + o] = As<T>::from(rsqrtf(sums[0] + p.epsilon));
        }
    });
}

KERNEL(demodulate_f32, DemodulateParams, LANES) { demodulate<float>(p); }
KERNEL(demodulate_f16, DemodulateParams, LANES) { demodulate<half>(p); }
