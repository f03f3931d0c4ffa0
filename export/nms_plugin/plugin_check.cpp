// The plugin without GPU and TensorRT's libraries: its interfaces called as TensorRT calls them, NMS on the CPU.
//
//     g++ -std=c++17 -O1 -ffp-contract=off -I TENSORRT/include -I CUDA/include plugin_check.cpp plugin.cpp nms_cpu.cpp
#include <NvInferRuntime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

extern "C" int attention_pose_nms_cpu(const float*, const float*, int, int, float, float, int, int, int*, float*, float*,
                                      int*, int, unsigned);
extern "C" IPluginCreatorInterface* const* getCreators(int32_t&) noexcept;

extern "C" int attention_pose_nms(const float* boxes, const float* scores, int batch, int candidates, float iou,
                                  float score, int max_det, int top_k, int* count, float* kept_boxes,
                                  float* kept_scores, int* kept_indices, void*) {
    return attention_pose_nms_cpu(boxes, scores, batch, candidates, iou, score, max_det, top_k, count, kept_boxes,
                                  kept_scores, kept_indices, 64, 0);
}

static void check(bool good, char const* what) {
    if (good) return;
    std::printf("failed: %s\n", what);
    std::exit(1);
}

// TensorRT's shape arithmetic, as far as this plugin uses it: constants.
struct Constant final : IDimensionExpr, apiv::VDimensionExpr {
    int64_t value;

    explicit Constant(int64_t value_) : value(value_) { IDimensionExpr::mImpl = this; }
    bool isConstant() const noexcept override { return true; }
    int64_t getConstantValue() const noexcept override { return value; }
    bool isSizeTensor() const noexcept override { return false; }
};

struct Builder final : IExprBuilder, apiv::VExprBuilder {
    std::vector<std::unique_ptr<Constant>> made;

    Builder() { IExprBuilder::mImpl = this; }
    IDimensionExpr const* constant(int64_t value) noexcept override {
        made.push_back(std::make_unique<Constant>(value));
        return made.back().get();
    }
    IDimensionExpr const* operation(DimensionOperation, IDimensionExpr const&, IDimensionExpr const&) noexcept override {
        return nullptr;
    }
    IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) noexcept override {
        return nullptr;
    }
};

static std::string shape_of(DimsExprs const& shape) {
    std::string text;
    for (int32_t axis = 0; axis < shape.nbDims; ++axis)
        text += (axis ? "x" : "") + std::to_string(static_cast<Constant const*>(shape.d[axis])->value);
    return text;
}

template <typename Capability>
static Capability* part(IPluginV3& plugin, PluginCapabilityType type) {
    auto* found = static_cast<Capability*>(plugin.getCapabilityInterface(type));
    check(found != nullptr, "every capability is there");
    return found;
}

static std::vector<int> kept_indices(IPluginV3& plugin, int max_det) {
    // Three boxes in each of two images. The second covers the first by an IoU of 0.8, above 0.6 and below 0.9.
    float const boxes[24] = {0, 0, 10, 8, 0, 0, 10, 10, 50, 50, 60, 60, 0, 0, 10, 10, 0, 0, 10, 8, 50, 50, 60, 60};
    float const scores[6] = {0.5f, 0.7f, 0.6f, 0.5f, 0.04f, 0.6f};
    std::vector<int> count(2), indices(2 * max_det);
    std::vector<float> out_boxes(8 * max_det), out_scores(2 * max_det);
    PluginTensorDesc in[2]{};
    in[0].dims = Dims{3, {2, 3, 4}};
    in[1].dims = Dims{2, {2, 3}};
    void const* inputs[] = {boxes, scores};
    void* outputs[] = {count.data(), out_boxes.data(), out_scores.data(), indices.data()};
    auto* runtime = part<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
    check(runtime->onShapeChange(in, 2, nullptr, 4) == 0, "onShapeChange takes (2, 3, 4) and (2, 3)");
    check(runtime->enqueue(in, nullptr, inputs, outputs, nullptr, nullptr) == 0, "enqueue");
    check(out_scores[0] == 0.7f && out_boxes[3] == 10, "the best box comes first");
    in[1].dims.d[1] = 4;
    check(runtime->onShapeChange(in, 2, nullptr, 4) != 0, "onShapeChange refuses another number of scores");
    indices.insert(indices.end(), count.begin(), count.end());
    return indices;
}

int main() {
    int32_t creators = 0;
    auto* creator = static_cast<IPluginCreatorV3One*>(getCreators(creators)[0]);
    check(creators == 1, "one creator");
    check(std::strcmp(creator->getPluginName(), "AttentionPoseNMS") == 0, "its name");
    check(creator->getFieldNames()->nbFields == 4, "four fields");

    std::unique_ptr<IPluginV3> plugin(creator->createPlugin("nms", nullptr, TensorRTPhase::kBUILD));
    check(plugin != nullptr, "the defaults make a plugin");
    check(kept_indices(*plugin, 100)[2] == -1, "by default 0.8 is too much overlap");

    float iou = 0.9f, score = 0.01f;
    int32_t max_det = 5, top_k = 300;
    PluginField fields[] = {{"iou_threshold", &iou, PluginFieldType::kFLOAT32, 1},
                            {"score_threshold", &score, PluginFieldType::kFLOAT32, 1},
                            {"max_det", &max_det, PluginFieldType::kINT32, 1},
                            {"top_k", &top_k, PluginFieldType::kINT32, 1}};
    PluginFieldCollection collection{4, fields};
    plugin.reset(creator->createPlugin("nms", &collection, TensorRTPhase::kBUILD));
    check(plugin != nullptr, "these fields make a plugin");
    std::vector<int> const expected = {1, 2, 0, -1, -1, 2, 0, 1, -1, -1, 3, 3};
    check(kept_indices(*plugin, 5) == expected, "its results");

    // As an engine does: stored while it is built, made anew when it is loaded, copied for each context.
    auto* stored = part<IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
    std::unique_ptr<IPluginV3> loaded(creator->createPlugin("nms", stored, TensorRTPhase::kRUNTIME));
    check(loaded != nullptr, "the stored fields make a plugin");
    plugin.reset();  // neither the loaded plugin nor its copies may point into it
    std::unique_ptr<IPluginV3> copy(loaded->clone());
    loaded.reset();
    std::unique_ptr<IPluginV3> attached(
        part<IPluginV3OneRuntime>(*copy, PluginCapabilityType::kRUNTIME)->attachToContext(nullptr));
    check(kept_indices(*copy, 5) == expected && kept_indices(*attached, 5) == expected, "the same results from copies");

    auto* build = part<v_1_0::IPluginV3OneBuild>(*copy, PluginCapabilityType::kBUILD);
    Builder builder;
    DimsExprs inputs[2]{{3, {builder.constant(7), builder.constant(2268), builder.constant(4)}},
                        {2, {builder.constant(7), builder.constant(2268)}}};
    DimsExprs shapes[4];
    check(build->getNbOutputs() == 4, "four outputs");
    check(build->getOutputShapes(inputs, 2, nullptr, 0, shapes, 4, builder) == 0, "getOutputShapes");
    check(shape_of(shapes[0]) == "7" && shape_of(shapes[1]) == "7x5x4" && shape_of(shapes[2]) == "7x5" &&
              shape_of(shapes[3]) == "7x5", "the shapes of the outputs");
    DataType types[4], floats[2] = {DataType::kFLOAT, DataType::kFLOAT}, halves[2] = {DataType::kHALF, DataType::kHALF};
    check(build->getOutputDataTypes(types, 4, floats, 2) == 0 && types[0] == DataType::kINT32 &&
              types[1] == DataType::kFLOAT && types[2] == DataType::kFLOAT && types[3] == DataType::kINT32, "the types");
    check(build->getOutputDataTypes(types, 4, halves, 2) != 0, "halves are refused");
    DynamicPluginTensorDesc tensors[6]{};
    for (int32_t index : {2, 5}) tensors[index].desc.type = DataType::kINT32;
    for (int32_t index = 0; index < 6; ++index)
        check(build->supportsFormatCombination(index, tensors, 2, 4), "linear float and int32");
    tensors[1].desc.type = DataType::kHALF;
    check(!build->supportsFormatCombination(1, tensors, 2, 4), "no halves");
    tensors[0].desc.dims = Dims{3, {-1, 2268, 4}};
    tensors[1].desc.dims = Dims{2, {-1, 2268}};
    check(build->configurePlugin(tensors, 2, tensors + 2, 4) == 0, "configurePlugin takes an open batch");

    iou = 1.5f;
    check(creator->createPlugin("nms", &collection, TensorRTPhase::kBUILD) == nullptr, "a threshold of 1.5 is refused");
    iou = 0.5f;
    fields[3].name = "topk";
    check(creator->createPlugin("nms", &collection, TensorRTPhase::kBUILD) == nullptr, "an unknown field is refused");
    std::printf("plugin checked with the headers of TensorRT %d.%d\n", NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR);
    return 0;
}
