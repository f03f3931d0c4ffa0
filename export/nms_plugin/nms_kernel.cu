// The NMS kernel and its launcher, without TensorRT: the plugin calls it, and so does export/gpu_check.py by ctypes.
#include <cuda_runtime_api.h>

#include "nms_core.h"

namespace attention_pose {

constexpr int THREADS = 512;

struct CudaBlock {
    int threads;

    template <typename Work>
    __device__ __forceinline__ void phase(const Work& work) const {
        work(static_cast<int>(threadIdx.x));
        __syncthreads();
    }
};

__global__ void __launch_bounds__(THREADS) nms_kernel(Problem problem) {
    __shared__ Shared shared;
    suppress(CudaBlock{THREADS}, problem, shared, static_cast<int>(blockIdx.x));
}

}  // namespace attention_pose

// Enqueue NMS on a stream (cudaStream_t): one launch, no allocation, no waiting, so it can be captured in a CUDA graph.
// All arrays lie on the GPU; see Problem in nms_core.h. Returns a cudaError_t, cudaErrorInvalidValue for arguments out
// of range.
extern "C" int attention_pose_nms(const float* boxes, const float* scores, int batch, int candidates,
                                  float iou_threshold, float score_threshold, int max_det, int top_k, int* count,
                                  float* kept_boxes, float* kept_scores, int* kept_indices, void* stream) {
    attention_pose::Problem problem{boxes, scores, batch, candidates, iou_threshold, score_threshold, max_det, top_k,
                                    count, kept_boxes, kept_scores, kept_indices};
    if (!attention_pose::valid(problem)) return cudaErrorInvalidValue;
    if (batch == 0) return cudaSuccess;
    void* arguments[] = {&problem};
    return cudaLaunchKernel(reinterpret_cast<const void*>(attention_pose::nms_kernel), dim3(batch),
                            dim3(attention_pose::THREADS), arguments, 0, static_cast<cudaStream_t>(stream));
}
