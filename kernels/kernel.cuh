// What all kernels share. No other header is included, neither CUDA's nor C++'s, so that nvcc,
// NVRTC and a host compiler all take the same text.
//
// A kernel is written as KERNEL(name, Params, threads) { ... } with one struct as its only
// argument. What every thread does stands in threads([&] { ... }); barrier() between two such
// stretches is __syncthreads(). A thread's own values do not outlive its stretch: what the next
// one needs lies in SHARED memory. This is all that lets a host compiler run a block with a
// plain loop over its threads, in any order, so that races show; two stretches without a barrier
// are an error there.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

// A half-precision number as it lies in memory; arithmetic is always in float.
struct half {
    u16 bits;
};

#if defined(__CUDACC__)

#define DEVICE __device__ __forceinline__
#define SHARED __shared__
// KERNEL(name, Params, threads per block[, blocks per multiprocessor that registers must allow])
#define KERNEL(name, Params, ...) \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ Params p)

template <class Stretch>
DEVICE void threads(Stretch stretch) {
    stretch();
}

DEVICE void barrier() { __syncthreads(); }

DEVICE float to_float(half h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h.bits));
    return f;
}

DEVICE half to_half(float f) {
    half h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(f));
    return h;
}

#else
#include "host/shim.h"
#endif

DEVICE float to_float(float f) { return f; }
DEVICE float to_float(u8 v) { return (float)v; }

template <class T>
struct As;
template <>
struct As<float> {
    static DEVICE float from(float f) { return f; }
};
template <>
struct As<half> {
    static DEVICE half from(float f) { return to_half(f); }
};
template <>
struct As<u8> {
    // Nearest, halves upwards; what is not a number becomes 0.
    static DEVICE u8 from(float f) { return (u8)(int)fminf(fmaxf(f + 0.5f, 0.0f), 255.0f); }
};

// N elements that move in one instruction, where they are aligned to their size.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
    T of[N];
};

template <int Bytes>
DEVICE bool aligned(const void* address) {
    return ((u64)address & (Bytes - 1)) == 0;
}

// The first `count` of N elements, the others 0, in one instruction where that is possible.
template <class T, int N>
DEVICE Pack<T, N> load(const T* from, int count) {
    if (count >= N && aligned<(int)sizeof(T) * N>(from)) return *(const Pack<T, N>*)from;
    Pack<T, N> pack = {};
#pragma unroll
    for (int i = 0; i < N; ++i) {
        if (i < count) pack.of[i] = from[i];
    }
    return pack;
}

// Likewise the first `count` of N elements.
template <class T, int N>
DEVICE void store(T* to, const Pack<T, N>& pack, int count) {
    if (count >= N && aligned<(int)sizeof(T) * N>(to)) {
        *(Pack<T, N>*)to = pack;
        return;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        if (i < count) to[i] = pack.of[i];
    }
}

DEVICE int clamp(int value, int low, int high) {
    return value < low ? low : (value > high ? high : value);
}

// Between a and b; what is not a number becomes low.
DEVICE float clamp(float value, float low, float high) { return fminf(fmaxf(value, low), high); }

DEVICE float mix(float a, float b, float t) { return a + t * (b - a); }

// Where a line of n samples is read for linear interpolation; ends are repeated.
struct Taps {
    int a, b;
    float t;
};

// At `position`, in samples, the first sample's centre being 0.
DEVICE Taps taps_at(float position, int n) {
    const float inside = clamp(position, 0.0f, (float)(n - 1));
    Taps taps;
    taps.a = (int)inside;
    taps.b = taps.a + 1 < n ? taps.a + 1 : taps.a;
    taps.t = inside - (float)taps.a;
    return taps;
}

// For output `i` of a resize with `step` = input size / output size, half-pixel centres.
DEVICE Taps taps_of(int i, float step, int n) { return taps_at(((float)i + 0.5f) * step - 0.5f, n); }

// Offsets within a plane fit into 32 bits, which halves the registers they take.
template <class T>
DEVICE float bilinear(const T* plane, i64 row, const Taps& x, const Taps& y) {
    const int top = y.a * (int)row, bottom = y.b * (int)row;
    return mix(mix(to_float(plane[top + x.a]), to_float(plane[top + x.b]), x.t),
               mix(to_float(plane[bottom + x.a]), to_float(plane[bottom + x.b]), x.t), y.t);
}
