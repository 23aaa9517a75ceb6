// What nvcc knows and a C++ compiler does not: enough to run kernels/cuda/admm.cu on the CPU, one thread a block, one
// block after the other. The test sets blockIdx and gridDim and calls the kernel for each block.
#include <cmath>
using std::sqrt;

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static

struct Index {
  unsigned x, y, z;
};
extern "C" {
Index blockIdx = {0, 0, 0}, gridDim = {1, 1, 1};
}
static const Index blockDim = {1, 1, 1}, threadIdx = {0, 0, 0};

inline void __syncthreads() {}
inline double __shfl_down_sync(unsigned, double value, int) { return value; }
