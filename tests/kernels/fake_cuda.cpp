// A CUDA driver library over host memory, for the bindings' tests: the few calls that they make,
// with the driver's own signatures. A module's image is the path of kernels compiled for the host.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

using Work = std::function<void()>;
struct Stream {
    bool capturing = false;
    std::vector<Work> recorded;
};
struct Function {
    int (*entry)(const void*, const unsigned*, const unsigned*, int);
    unsigned size;
};
typedef std::vector<Work> Graph;
typedef std::uint64_t Pointer;

static Stream default_stream;
static int lost = 0;  // the result of every call from now on
static int context;

static int put(Stream* stream, Work work) {
    Stream* s = stream ? stream : &default_stream;
    if (s->capturing) {
        s->recorded.push_back(work);
    } else {
        work();
    }
    return lost;
}

#define CALL extern "C" int

CALL cuInit(unsigned) { return 0; }
CALL cuDriverGetVersion(int* v) { *v = 13000; return 0; }
CALL cuDeviceGetCount(int* n) { *n = 1; return 0; }
CALL cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal ? 101 : 0; }
CALL cuDeviceGetName(char* name, int length, int) { snprintf(name, length, "Fake 1"); return 0; }
CALL cuDeviceTotalMem_v2(size_t* bytes, int) { *bytes = 1u << 30; return 0; }
CALL cuDeviceGetAttribute(int* value, int which, int) {
    *value = which == 75 ? 9 : which == 76 ? 0 : which == 38 ? 1 << 20 : which == 16 ? 7 : 1;
    return 0;
}
CALL cuDeviceComputeCapability(int* major, int* minor, int) { *major = 9; *minor = 0; return 0; }
CALL cuDevicePrimaryCtxRetain(void** c, int) { *c = &context; return 0; }
CALL cuDevicePrimaryCtxRelease_v2(int) { return 0; }
CALL cuDevicePrimaryCtxReset_v2(int) { lost = 0; return 0; }
CALL cuCtxSetCurrent(void*) { return lost; }
CALL cuCtxGetCurrent(void** c) { *c = &context; return 0; }
CALL cuCtxPushCurrent_v2(void*) { return 0; }
CALL cuCtxPopCurrent_v2(void** c) { if (c) *c = &context; return 0; }
CALL cuCtxGetDevice(int* device) { *device = 0; return 0; }
CALL cuCtxSynchronize() { return lost; }
CALL cuMemGetInfo_v2(size_t* left, size_t* total) { *left = 1 << 29; *total = 1 << 30; return lost; }
CALL cuMemAlloc_v2(Pointer* p, size_t n) {
    if (n > (1u << 30)) return 2;
    *p = (Pointer)std::aligned_alloc(256, (n + 255) / 256 * 256);
    return lost;
}
CALL cuMemFree_v2(Pointer p) { std::free((void*)p); return lost; }
CALL cuMemHostAlloc(void** p, size_t n, unsigned) { *p = std::malloc(n); return lost; }
CALL cuMemFreeHost(void* p) { std::free(p); return lost; }
CALL cuMemHostGetDevicePointer_v2(Pointer* d, void* p, unsigned) { *d = (Pointer)p; return lost; }
CALL cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t n, Stream* s) {
    return put(s, [=] { std::memcpy((void*)to, from, n); });
}
CALL cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t n, Stream* s) {
    return put(s, [=] { std::memcpy(to, (const void*)from, n); });
}
CALL cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t n, Stream* s) {
    return put(s, [=] { std::memcpy((void*)to, (const void*)from, n); });
}
CALL cuMemsetD8Async(Pointer to, unsigned char byte, size_t n, Stream* s) {
    return put(s, [=] { std::memset((void*)to, byte, n); });
}
CALL cuStreamCreate(Stream** s, unsigned) { *s = new Stream; return lost; }
CALL cuStreamDestroy_v2(Stream* s) { delete s; return 0; }
CALL cuStreamSynchronize(Stream*) { return lost; }
CALL cuStreamQuery(Stream*) { return lost; }
CALL cuStreamWaitEvent(Stream*, void*, unsigned) { return lost; }
CALL cuEventCreate(void** e, unsigned) { *e = new int(0); return lost; }
CALL cuEventDestroy_v2(void* e) { delete (int*)e; return 0; }
CALL cuEventRecord(void* e, Stream*) { *(int*)e = 1; return lost; }
CALL cuEventSynchronize(void*) { return lost; }
CALL cuEventQuery(void* e) { return *(int*)e ? lost : 600; }
CALL cuEventElapsedTime(float* ms, void*, void*) { *ms = 1.5f; return lost; }
CALL cuEventElapsedTime_v2(float* ms, void*, void*) { *ms = 1.5f; return lost; }
CALL cuModuleLoadData(void** m, const void* image) {
    *m = dlopen((const char*)image, RTLD_NOW | RTLD_LOCAL);
    return *m ? lost : 200;
}
CALL cuModuleLoadDataEx(void** m, const void* image, unsigned, void*, void*) {
    return cuModuleLoadData(m, image);
}
CALL cuModuleUnload(void*) { return 0; }
CALL cuModuleGetFunction(void** f, void* module, const char* name) {
    void* entry = dlsym(module, name);
    void* size = dlsym(module, (std::string(name) + "_params").c_str());
    if (!entry || !size) return 500;
    Function* function = new Function;
    std::memcpy(&function->entry, &entry, sizeof entry);
    function->size = *(unsigned*)size;
    *f = function;
    return lost;
}
CALL cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                    unsigned bz, unsigned, Stream* s, void** params, void** extra) {
    if (params || !extra || extra[0] != (void*)1 || extra[2] != (void*)2 || extra[4]) return 1;
    if (*(size_t*)extra[3] != f->size) return 701;
    std::string packed((const char*)extra[1], f->size);  // a copy, as the driver makes one
    return put(s, [=] {
        const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
        f->entry(packed.data(), grid, block, 0);
    });
}
CALL cuStreamBeginCapture_v2(Stream* s, int mode) {
    if (mode != 1 || s->capturing) return 1;
    s->capturing = true;
    return lost;
}
CALL cuStreamEndCapture(Stream* s, Graph** graph) {
    if (!s->capturing) return 1;
    *graph = new Graph(s->recorded);
    s->recorded.clear();
    s->capturing = false;
    return lost;
}
CALL cuGraphInstantiateWithFlags(Graph** out, Graph* graph, unsigned long long) {
    *out = new Graph(*graph);
    return lost;
}
CALL cuGraphLaunch(Graph* graph, Stream* s) {
    for (const Work& work : *graph) put(s, work);
    return lost;
}
CALL cuGraphDestroy(Graph* graph) { delete graph; return 0; }
CALL cuGraphExecDestroy(Graph* graph) { delete graph; return 0; }
CALL cuGetErrorName(int code, const char** name) {
    *name = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY"
                                                                   : "CUDA_ERROR_FAKE";
    return 0;
}
CALL cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }
extern "C" void fake_lose(int code) { lost = code; }

// Newer bindings ask here for everything, by the names without version.
CALL cuGetProcAddress_v2(const char* name, void** out, int, std::uint64_t, int* status) {
    static void* self = [] {
        Dl_info info;
        dladdr((void*)&cuInit, &info);
        return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }();
    *out = nullptr;
    const std::string plain = name == std::string("cuGraphInstantiate")
                                  ? "cuGraphInstantiateWithFlags" : name;
    for (const char* version : {"_v2", ""}) {
        if (!*out) *out = dlsym(self, (plain + version).c_str());
    }
    if (status) *status = *out ? 0 : 1;
    return *out ? 0 : 500;
}
CALL cuGetProcAddress(const char* name, void** out, int version, std::uint64_t flags) {
    return cuGetProcAddress_v2(name, out, version, flags, nullptr);
}
