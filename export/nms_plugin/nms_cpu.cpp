// The phases of the NMS kernel on the CPU, one thread of the block after the other, for tests by ctypes.
//
//     g++ -std=c++17 -O2 -ffp-contract=off -fPIC -shared nms_cpu.cpp -o libnms_cpu.so
#include <cstring>

#include "nms_core.h"

namespace attention_pose {

struct SequentialBlock {
    int threads;  // a power of two
    unsigned order;

    // Within a phase the threads of a GPU run in any order. Any odd multiplier gives a permutation of them.
    template <typename Work>
    void phase(const Work& work) const {
        for (int turn = 0; turn < threads; ++turn)
            work(static_cast<int>((turn * (2 * order + 1) + order) & (threads - 1)));
    }
};

}  // namespace attention_pose

// As attention_pose_nms of nms_kernel.cu, on arrays in main memory. Instead of a stream it takes the number of threads
// that a block has, a power of two, and in which of many orders they take their turn in each phase (0: one by one).
// Returns 0, or 1 for arguments out of range.
extern "C" int attention_pose_nms_cpu(const float* boxes, const float* scores, int batch, int candidates,
                                      float iou_threshold, float score_threshold, int max_det, int top_k, int* count,
                                      float* kept_boxes, float* kept_scores, int* kept_indices, int threads,
                                      unsigned order) {
    const attention_pose::Problem problem{boxes, scores, batch, candidates, iou_threshold, score_threshold, max_det,
                                          top_k, count, kept_boxes, kept_scores, kept_indices};
    if (!attention_pose::valid(problem) || threads < 1 || (threads & (threads - 1)) != 0) return 1;
    attention_pose::Shared shared;
    for (int image = 0; image < batch; ++image) {
        std::memset(&shared, 0xAB, sizeof shared);  // as on a GPU, nothing is there before it is written
        suppress(attention_pose::SequentialBlock{threads, order}, problem, shared, image);
    }
    return 0;
}
