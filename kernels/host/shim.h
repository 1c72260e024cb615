// CUDA's words for a host compiler: a launch is a loop over blocks, a stretch of a kernel
// (threads([&] { ... })) a loop over the threads of its block. See kernel.cuh.
#pragma once
#include <cmath>
#include <cstring>

#define DEVICE inline
// One block runs at a time in a thread; a static is what all of its threads share.
#define SHARED static thread_local

struct Index {
    unsigned x, y, z;
};

// Threads and blocks forwards, or backwards: what differs between the two is a race.
// `fault` counts two stretches without a barrier in between, and barriers within a stretch:
// here both would look right, on a card neither is.
struct Host {
    Index thread, block, block_size, grid_size;
    bool backwards, in_stretch, after_stretch;
    int fault;
};
inline thread_local Host host_state;

#define threadIdx (host_state.thread)
#define blockIdx (host_state.block)
#define blockDim (host_state.block_size)
#define gridDim (host_state.grid_size)

inline Index index_of(unsigned linear, const Index& size) {
    return {linear % size.x, linear / size.x % size.y, linear / size.x / size.y};
}

template <class Body>
inline void for_all(const Index& size, Body body) {
    const unsigned count = size.x * size.y * size.z;
    for (unsigned i = 0; i < count; ++i) {
        body(index_of(host_state.backwards ? count - 1 - i : i, size));
    }
}

template <class Stretch>
inline void threads(Stretch stretch) {
    host_state.fault += host_state.after_stretch;
    host_state.in_stretch = true;
    for_all(host_state.block_size, [&](const Index& thread) {
        host_state.thread = thread;
        stretch();
    });
    host_state.in_stretch = false;
    host_state.after_stretch = true;
}

// All threads have ended their stretch before the next one begins.
inline void barrier() {
    host_state.fault += host_state.in_stretch;
    host_state.after_stretch = false;
}

// IEEE 754 binary16, nearest even, as the GPU rounds.
inline float to_float(half h) {
    const u32 sign = (u32)(h.bits & 0x8000) << 16, exponent = h.bits >> 10 & 31;
    const u32 fraction = h.bits & 1023;
    u32 bits = sign | (exponent + 112) << 23 | fraction << 13;
    float f;
    if (exponent == 31) bits = sign | 0x7F800000u | fraction << 13;
    if (exponent == 0) {
        f = (float)fraction * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -f : f;
    }
    std::memcpy(&f, &bits, 4);
    return f;
}

inline half to_half(float f) {
    u32 bits;
    std::memcpy(&bits, &f, 4);
    const u16 sign = (u16)(bits >> 16 & 0x8000);
    const u32 size = bits & 0x7FFFFFFFu;
    if (size > 0x7F800000u) return {(u16)(sign | 0x7FFF)};
    if (size >= 0x477FF000u) return {(u16)(sign | 0x7C00)};  // rounds to 65536 or more
    if (size < 0x38800000u) {                                // below 2^-14: a multiple of 2^-24
        const float magnitude = std::fabs(f) * 16777216.0f;
        return {(u16)(sign | (u16)std::nearbyint(magnitude))};
    }
    const u32 rounded = size + 0xFFFu + (size >> 13 & 1u);
    return {(u16)(sign | (u16)((rounded - 0x38000000u) >> 13))};
}

inline float rsqrtf(float f) { return 1.0f / std::sqrt(f); }

#define KERNEL(name, Params, ...)                                                               \
    static void name##_block(const Params& p);                                                  \
    extern "C" const unsigned name##_params = sizeof(Params);                                   \
    extern "C" int name(const Params* p, const unsigned* grid, const unsigned* block,           \
                        int backwards) {                                                        \
        host_state.backwards = backwards != 0;                                                  \
        host_state.fault = 0;                                                                   \
        host_state.block_size = {block[0], block[1], block[2]};                                 \
        host_state.grid_size = {grid[0], grid[1], grid[2]};                                     \
        for_all(host_state.grid_size, [&](const Index& at) {                                    \
            host_state.block = at;                                                              \
            host_state.after_stretch = false;                                                   \
            name##_block(*p);                                                                   \
        });                                                                                     \
        return host_state.fault;                                                                \
    }                                                                                           \
    static void name##_block(const Params& p)
