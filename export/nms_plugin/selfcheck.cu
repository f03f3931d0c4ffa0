// Random and adversarial cases through the NMS in parallel, against the same phases one thread after the other.
//
//     nvcc -std=c++17 -O3 selfcheck.cu nms_kernel.cu nms_cpu.cpp -o selfcheck                     on a GPU; run it also
//         under compute-sanitizer --tool memcheck and --tool racecheck
//     g++ -std=c++20 -O1 -g -ffp-contract=off -fsanitize=thread -x c++ selfcheck.cu nms_cpu.cpp   without one: each
//         thread of the block is a thread of the CPU, and ThreadSanitizer finds what they read and write unguarded
//
// selfcheck CASES [SEED]; exit code 1 at the first difference.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "nms_core.h"

extern "C" int attention_pose_nms_cpu(const float*, const float*, int, int, float, float, int, int, int*, float*, float*,
                                      int*, int, unsigned);

struct Case {
    std::vector<float> boxes, scores;
    int batch, candidates, max_det, top_k;
    float iou_threshold, score_threshold;
};

struct Kept {
    std::vector<int> count, indices;
    std::vector<float> boxes, scores;

    explicit Kept(const Case& c)
        : count(c.batch), indices(c.batch * c.max_det), boxes(4 * c.batch * c.max_det), scores(c.batch * c.max_det) {}
};

#ifdef __CUDACC__
#include <cuda_runtime_api.h>

extern "C" int attention_pose_nms(const float*, const float*, int, int, float, float, int, int, int*, float*, float*,
                                  int*, void*);

static void must(int error) {
    if (error == cudaSuccess) return;
    std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(static_cast<cudaError_t>(error)));
    std::exit(3);
}

template <typename T>
struct OnGpu {  // of exactly its size, so that memcheck sees a step beyond
    T* data = nullptr;
    std::vector<T>& host;

    explicit OnGpu(std::vector<T>& values) : host(values) {
        must(cudaMalloc(&data, host.size() * sizeof(T)));
        must(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
    }
    void fetch() { must(cudaMemcpy(host.data(), data, host.size() * sizeof(T), cudaMemcpyDeviceToHost)); }
    ~OnGpu() { cudaFree(data); }
};

static Kept in_parallel(Case& c) {
    Kept kept(c);
    OnGpu<float> boxes(c.boxes), scores(c.scores), kept_boxes(kept.boxes), kept_scores(kept.scores);
    OnGpu<int> count(kept.count), indices(kept.indices);
    must(attention_pose_nms(boxes.data, scores.data, c.batch, c.candidates, c.iou_threshold, c.score_threshold,
                            c.max_det, c.top_k, count.data, kept_boxes.data, kept_scores.data, indices.data, nullptr));
    must(cudaDeviceSynchronize());
    kept_boxes.fetch(), kept_scores.fetch(), count.fetch(), indices.fetch();
    return kept;
}
#else
#include <barrier>
#include <thread>

struct ThreadedBlock {  // as CudaBlock in nms_kernel.cu, with std::barrier for __syncthreads
    int threads, thread;
    std::barrier<>* barrier;

    template <typename Work>
    void phase(const Work& work) const {
        work(thread);
        barrier->arrive_and_wait();
    }
};

static Kept in_parallel(Case& c) {
    constexpr int THREADS = 8;
    Kept kept(c);
    const attention_pose::Problem problem{c.boxes.data(), c.scores.data(), c.batch, c.candidates, c.iou_threshold,
                                          c.score_threshold, c.max_det, c.top_k, kept.count.data(), kept.boxes.data(),
                                          kept.scores.data(), kept.indices.data()};
    for (int image = 0; image < c.batch; ++image) {
        attention_pose::Shared shared;
        std::memset(&shared, 0xAB, sizeof shared);
        std::barrier<> barrier(THREADS);
        std::vector<std::thread> pool;
        for (int thread = 0; thread < THREADS; ++thread)
            pool.emplace_back([&, thread] {
                suppress(ThreadedBlock{THREADS, thread, &barrier}, problem, shared, image);
            });
        for (std::thread& one : pool) one.join();
    }
    return kept;
}
#endif

static Case random_case(std::mt19937& generator) {
    const auto pick = [&](std::initializer_list<int> values) { return values.begin()[generator() % values.size()]; };
    const auto uniform = [&](float low, float high) {
        return low + (high - low) * static_cast<float>(generator() % 65536) / 65536;
    };
    Case c;
    c.batch = pick({1, 2, 3});
    c.candidates = pick({1, 2, 63, 64, 65, 200, 1000, 2268, 8400});
    c.max_det = pick({1, 5, 64, 100, 256});
    c.top_k = pick({1, 63, 100, 1000, 4096});
    c.iou_threshold = uniform(0, 1);
    c.score_threshold = uniform(-0.2f, 0.8f);
    const float spread = static_cast<float>(pick({20, 200, 2000}));
    const int levels = pick({2, 50, 65536});  // few levels: many equal scores
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (int index = 0; index < c.batch * c.candidates; ++index) {
        const float left = uniform(0, spread), top = uniform(0, spread);
        c.boxes.insert(c.boxes.end(), {left, top, left + uniform(-2, 60), top + uniform(-2, 90)});
        c.scores.push_back(generator() % 50 == 0 ? nan : static_cast<float>(generator() % levels) / (levels - 1));
        if (generator() % 100 == 0) c.boxes[c.boxes.size() - 1 - generator() % 4] = nan;
    }
    return c;
}

static bool same(const std::vector<float>& a, const std::vector<float>& b) {  // NaN equals NaN
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

int main(int argc, char** argv) {
    const int cases = argc > 1 ? std::atoi(argv[1]) : 1000;
    std::mt19937 generator(argc > 2 ? std::atoi(argv[2]) : 0);
    long boxes_kept = 0;
    for (int number = 0; number < cases; ++number) {
        Case c = random_case(generator);
        const Kept found = in_parallel(c);
        Kept expected(c);
        attention_pose_nms_cpu(c.boxes.data(), c.scores.data(), c.batch, c.candidates, c.iou_threshold,
                               c.score_threshold, c.max_det, c.top_k, expected.count.data(), expected.boxes.data(),
                               expected.scores.data(), expected.indices.data(), 64, number);
        if (found.count != expected.count || found.indices != expected.indices || !same(found.boxes, expected.boxes) ||
            !same(found.scores, expected.scores)) {
            std::printf("case %d differs: %d images of %d candidates, max_det %d, top_k %d\n", number, c.batch,
                        c.candidates, c.max_det, c.top_k);
            return 1;
        }
        for (int count : expected.count) boxes_kept += count;
    }
    std::printf("%d cases equal, %ld boxes kept\n", cases, boxes_kept);
    return 0;
}
