// Greedy non-maximum suppression of one image by one block of threads, as a row of phases with a barrier after each.
//
// nvcc compiles it into the kernel (nms_kernel.cu), a C++ compiler into a CPU program (nms_cpu.cpp) that runs the very
// same phases thread after thread, so that the tests need no GPU. No TensorRT here.
//
// What it keeps is what runtime/nms.py keeps of the scores above the threshold, bit for bit: best score first, of
// equal scores the lower index, and a box goes where its IoU with a kept one is above the threshold. Beyond that, only
// the top_k best candidates take part, and a score that is no number never does.
//
//   collect   keys of the scores above the threshold, as far as there is room for them
//   select    only where more than top_k are: the key of the top_k-th best, by radix select, then collect again
//   sort      the keys, bitonically, best first
//   suppress  64 candidates at a time: against the boxes kept so far and among each other; ends at max_det
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define NMS_DEVICE __device__ __forceinline__
#else
#define NMS_DEVICE inline
#endif

namespace attention_pose {

constexpr int MAX_TOP_K = 4096;  // the keys of so many fit, with the rest, into the 48 KB that every GPU gives a block
constexpr int MAX_DET = 256;
constexpr int TILE = 64;  // bits of a mask
constexpr int BINS = 256;
constexpr int GROUP = 16;  // bins whose sum is taken at once

using Key = unsigned long long;  // the type that CUDA's 64-bit atomics take

struct Box {
    float left, top, right, bottom;
};

// Arguments of all entry points. Boxes are (left, top, right, bottom) in pixels, all arrays contiguous.
struct Problem {
    const float* boxes;   // (batch, candidates, 4)
    const float* scores;  // (batch, candidates)
    int batch, candidates;
    float iou_threshold, score_threshold;
    int max_det, top_k;
    int* count;           // (batch)
    float* kept_boxes;    // (batch, max_det, 4), zeros beyond count
    float* kept_scores;   // (batch, max_det), zeros beyond count
    int* kept_indices;    // (batch, max_det), -1 beyond count
};

// What the threads of a block share: 40 KB.
struct Shared {
    Key keys[MAX_TOP_K];
    Box kept_boxes[MAX_DET];
    Box tile[TILE];
    Key covers[TILE];   // bit j: this box of the tile drops box j of the tile if it is kept itself
    Key removed;        // bit j: a box kept from an earlier tile drops box j of the tile
    int places[MAX_DET];  // in its tile, of each kept box
    int histogram[BINS];
    int groups[BINS / GROUP];
    Key boundary;       // the top_k-th best key as far as its digits are known, zeros below
    int remaining;      // how many keys that begin with these digits belong to the top_k
    int exact;          // all of them do
    int found, kept;
};

inline bool valid(const Problem& p) {  // written so that thresholds that are no numbers fail, too
    return p.batch >= 0 && p.candidates >= 0 && p.iou_threshold >= 0 && p.iou_threshold <= 1 &&
           p.score_threshold == p.score_threshold && p.max_det >= 1 && p.max_det <= MAX_DET && p.top_k >= 1 &&
           p.top_k <= MAX_TOP_K;
}

#ifdef __CUDACC__
// Unlike the operators, these are never fused into a multiply-add, which rounds once where NumPy rounds twice.
NMS_DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
NMS_DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }
NMS_DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
NMS_DEVICE int fetch_add(int* address, int value) { return atomicAdd(address, value); }
NMS_DEVICE void set_bits(Key* address, Key bits) { atomicOr(address, bits); }
NMS_DEVICE int lowest_bit(Key bits) { return __ffsll(static_cast<long long>(bits)) - 1; }
NMS_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
#else
// To be compiled with -ffp-contract=off. The atomics are for selfcheck.cu, which runs the phases on real threads.
NMS_DEVICE float add(float a, float b) { return a + b; }
NMS_DEVICE float multiply(float a, float b) { return a * b; }
NMS_DEVICE float divide(float a, float b) { return a / b; }
NMS_DEVICE int fetch_add(int* address, int value) { return __atomic_fetch_add(address, value, __ATOMIC_RELAXED); }
NMS_DEVICE void set_bits(Key* address, Key bits) { __atomic_fetch_or(address, bits, __ATOMIC_RELAXED); }
NMS_DEVICE int lowest_bit(Key bits) { return __builtin_ctzll(bits); }
NMS_DEVICE uint32_t bits_of(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}
#endif

// Larger for a better candidate: the score as an integer of the same order, then the lower index. Never 0.
NMS_DEVICE Key key_of(float score, int index) {
    uint32_t bits = bits_of(score == 0 ? 0.0f : score);  // -0 equals 0
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<Key>(bits) << 32 | ~static_cast<uint32_t>(index);
}

NMS_DEVICE int index_of(Key key) { return static_cast<int>(~static_cast<uint32_t>(key)); }

NMS_DEVICE Box load_box(const float* boxes, int index) {
    const float* box = boxes + 4 * static_cast<int64_t>(index);
    return {box[0], box[1], box[2], box[3]};
}

// Both ternaries hand a NaN on, as np.clip does; a box with a NaN thus has no number for an area and covers nothing.
NMS_DEVICE float product_of_sides(float width, float height) {
    return multiply(width < 0 ? 0.0f : width, height < 0 ? 0.0f : height);
}

NMS_DEVICE float area(const Box& box) {
    return product_of_sides(add(box.right, -box.left), add(box.bottom, -box.top));
}

// Rounded step by step as runtime.nms.box_iou does in float32.
NMS_DEVICE bool overlaps(const Box& a, const Box& b, float threshold) {
    const float width = add(a.right < b.right ? a.right : b.right, -(a.left > b.left ? a.left : b.left));
    const float height = add(a.bottom < b.bottom ? a.bottom : b.bottom, -(a.top > b.top ? a.top : b.top));
    const float overlap = product_of_sides(width, height);
    const float together = add(add(area(a), area(b)), -overlap);
    return together > 0 && divide(overlap, together) > threshold;
}

NMS_DEVICE void write(const Problem& p, int64_t slot, const Box& box, float score, int index) {
    float* kept_box = p.kept_boxes + 4 * slot;
    kept_box[0] = box.left;
    kept_box[1] = box.top;
    kept_box[2] = box.right;
    kept_box[3] = box.bottom;
    p.kept_scores[slot] = score;
    p.kept_indices[slot] = index;
}

// Suppress one image. A Block has `threads` and `phase(work)`, which calls work(thread) for each of them and then waits
// for all. What a phase reads of Shared, no other thread writes in that phase, atomics apart; conditions between
// phases read what at least one barrier separates from the next write.
template <typename Block>
NMS_DEVICE void suppress(const Block& block, const Problem& p, Shared& s, int image) {
    const int threads = block.threads;
    const float* scores = p.scores + static_cast<int64_t>(image) * p.candidates;
    const float* boxes = p.boxes + 4 * static_cast<int64_t>(image) * p.candidates;
    const int64_t output = static_cast<int64_t>(image) * p.max_det;

    block.phase([&](int thread) {
        if (thread == 0) {
            s.found = s.kept = s.exact = 0;
            s.boundary = 0;
            s.remaining = p.top_k;
        }
    });

    const auto collect = [&](int thread) {
        for (int index = thread; index < p.candidates; index += threads) {
            if (!(scores[index] > p.score_threshold)) continue;
            const Key key = key_of(scores[index], index);
            if (key < s.boundary) continue;
            const int place = fetch_add(&s.found, 1);
            if (place < p.top_k) s.keys[place] = key;
        }
    };
    block.phase(collect);

    if (s.found > p.top_k) {
        // The digits of the boundary, highest first. No two keys are equal (the index is in them), so equal scores need
        // no care of their own, and mostly a few digits of the score suffice.
        Key known = 0;  // bits of the digits found so far
        for (int shift = 56; !s.exact; shift -= 8) {
            const int remaining = s.remaining;
            block.phase([&](int thread) {
                for (int bin = thread; bin < BINS; bin += threads) s.histogram[bin] = 0;
            });
            block.phase([&](int thread) {
                for (int index = thread; index < p.candidates; index += threads) {
                    if (!(scores[index] > p.score_threshold)) continue;
                    const Key key = key_of(scores[index], index);
                    if ((key & known) == s.boundary) fetch_add(&s.histogram[key >> shift & (BINS - 1)], 1);
                }
            });
            block.phase([&](int thread) {
                for (int group = thread; group < BINS / GROUP; group += threads) {
                    int sum = 0;
                    for (int bin = group * GROUP; bin < (group + 1) * GROUP; ++bin) sum += s.histogram[bin];
                    s.groups[group] = sum;
                }
            });
            block.phase([&](int thread) {
                for (int bin = thread; bin < BINS; bin += threads) {
                    int above = 0;  // keys in higher bins
                    for (int group = bin / GROUP + 1; group < BINS / GROUP; ++group) above += s.groups[group];
                    for (int other = bin + 1; other % GROUP != 0; ++other) above += s.histogram[other];
                    if (above >= remaining || above + s.histogram[bin] < remaining) continue;
                    s.boundary |= static_cast<Key>(bin) << shift;  // true of one bin only
                    s.remaining = remaining - above;
                    s.exact = above + s.histogram[bin] == remaining;
                    s.found = 0;
                }
            });
            known |= static_cast<Key>(BINS - 1) << shift;
        }
        block.phase(collect);
    }

    const int found = s.found;
    int size = 1;
    while (size < found) size *= 2;
    block.phase([&](int thread) {
        for (int place = found + thread; place < size; place += threads) s.keys[place] = 0;
    });
    for (int span = 2; span <= size; span *= 2) {
        for (int stride = span / 2; stride > 0; stride /= 2) {
            block.phase([&](int thread) {
                for (int pair = thread; pair < size / 2; pair += threads) {
                    const int first = 2 * pair - (pair & (stride - 1)), second = first + stride;
                    const Key a = s.keys[first], b = s.keys[second];
                    if ((a < b) == ((first & span) == 0)) {
                        s.keys[first] = b;
                        s.keys[second] = a;
                    }
                }
            });
        }
    }

    for (int start = 0; start < found && s.kept < p.max_det; start += TILE) {
        const int kept_before = s.kept;
        const int in_tile = found - start < TILE ? found - start : TILE;
        block.phase([&](int thread) {
            for (int place = thread; place < in_tile; place += threads) {
                s.tile[place] = load_box(boxes, index_of(s.keys[start + place]));
                s.covers[place] = 0;
            }
            if (thread == 0) s.removed = 0;
        });
        block.phase([&](int thread) {
            for (int pair = thread; pair < (kept_before + in_tile) * TILE; pair += threads) {
                const int place = pair % TILE, better = pair / TILE, better_place = better - kept_before;
                if (place >= in_tile) continue;
                if (better_place < 0) {
                    if (overlaps(s.kept_boxes[better], s.tile[place], p.iou_threshold))
                        set_bits(&s.removed, Key{1} << place);
                } else if (better_place < place) {
                    if (overlaps(s.tile[better_place], s.tile[place], p.iou_threshold))
                        set_bits(&s.covers[better_place], Key{1} << place);
                }
            }
        });
        block.phase([&](int thread) {
            if (thread != 0) return;
            int kept = kept_before;
            Key left = ~s.removed & ~Key{0} >> (TILE - in_tile);
            while (left != 0 && kept < p.max_det) {
                const int place = lowest_bit(left);
                s.places[kept++] = place;
                left &= ~s.covers[place] & ~(Key{1} << place);
            }
            s.kept = kept;
        });
        block.phase([&](int thread) {
            for (int slot = kept_before + thread; slot < s.kept; slot += threads) {
                const Box box = s.tile[s.places[slot]];
                const int index = index_of(s.keys[start + s.places[slot]]);
                s.kept_boxes[slot] = box;
                write(p, output + slot, box, scores[index], index);
            }
        });
    }

    block.phase([&](int thread) {
        if (thread == 0) p.count[image] = s.kept;
        for (int slot = s.kept + thread; slot < p.max_det; slot += threads)
            write(p, output + slot, Box{0, 0, 0, 0}, 0, -1);
    });
}

}  // namespace attention_pose
