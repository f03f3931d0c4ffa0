// The NMS kernel as a TensorRT plugin: AttentionPoseNMS, version 1, for TensorRT 10 and 11.
//
//   inputs   boxes (B, A, 4) float, scores (B, A) float; linear
//   outputs  count (B) int32, boxes (B, max_det, 4) float, scores (B, max_det) float, indices (B, max_det) int32
//   fields   iou_threshold, score_threshold float; max_det, top_k int32; each has a default
//
// One binary serves both versions, built with the headers of either: it uses only interfaces whose virtual tables are
// the same in both (IPluginV3 in its first version), links nothing of TensorRT, and leaves registering to the loader.
#include <NvInferRuntime.h>

#include <cstdio>
#include <cstring>
#include <new>

#include "nms_core.h"

extern "C" int attention_pose_nms(const float*, const float*, int, int, float, float, int, int, int*, float*, float*,
                                  int*, void*);

namespace attention_pose {

using namespace nvinfer1;

constexpr char const* NAME = "AttentionPoseNMS";
constexpr char const* VERSION = "1";
constexpr int OUTPUTS = 4;

struct Settings {  // defaults: runtime.nms.IOU_THRESHOLD, export.onnx_graph.NMS_SCORE, runtime.nms.MAX_BOXES
    float iou_threshold = 0.6f;
    float score_threshold = 0.05f;
    int32_t max_det = 100;
    int32_t top_k = MAX_TOP_K;
};

// Both lists of fields are made of it: the names that the creator takes and the values that an engine stores.
struct Fields {
    PluginField fields[4];
    PluginFieldCollection collection{4, fields};

    explicit Fields(Settings const* s)
        : fields{{"iou_threshold", s ? &s->iou_threshold : nullptr, PluginFieldType::kFLOAT32, 1},
                 {"score_threshold", s ? &s->score_threshold : nullptr, PluginFieldType::kFLOAT32, 1},
                 {"max_det", s ? &s->max_det : nullptr, PluginFieldType::kINT32, 1},
                 {"top_k", s ? &s->top_k : nullptr, PluginFieldType::kINT32, 1}} {}
    Fields(Fields const&) = delete;  // the collection points into it
    Fields& operator=(Fields const&) = delete;
};

template <typename T>
bool read(PluginField const& field, PluginFieldType type, T& value) {
    if (field.type != type || field.length != 1 || field.data == nullptr) return false;
    std::memcpy(&value, field.data, sizeof value);
    return true;
}

// Says what is wrong on standard error: there is no logger that both versions share, see setLoggerFinder.
bool read_settings(PluginFieldCollection const& collection, Settings& s) {
    for (int32_t index = 0; index < collection.nbFields; ++index) {
        PluginField const& field = collection.fields[index];
        auto const named = [&](char const* name) { return field.name && std::strcmp(field.name, name) == 0; };
        bool const good = named("iou_threshold")     ? read(field, PluginFieldType::kFLOAT32, s.iou_threshold)
                          : named("score_threshold") ? read(field, PluginFieldType::kFLOAT32, s.score_threshold)
                          : named("max_det")         ? read(field, PluginFieldType::kINT32, s.max_det)
                          : named("top_k")           ? read(field, PluginFieldType::kINT32, s.top_k)
                                                     : false;
        if (good) continue;
        std::fprintf(stderr, "%s: no such field, or not one float32 or int32 as it should be: %s; the fields are "
                     "iou_threshold, score_threshold, max_det, top_k\n", NAME, field.name ? field.name : "(no name)");
        return false;
    }
    Problem problem{};
    problem.iou_threshold = s.iou_threshold;
    problem.score_threshold = s.score_threshold;
    problem.max_det = s.max_det;
    problem.top_k = s.top_k;
    if (valid(problem)) return true;
    std::fprintf(stderr, "%s: iou_threshold %g (0 to 1), score_threshold %g (a number), max_det %d (1 to %d) or top_k %d "
                 "(1 to %d) is out of its range\n", NAME, s.iou_threshold, s.score_threshold, s.max_det, MAX_DET, s.top_k,
                 MAX_TOP_K);
    return false;
}

// What is still open while the engine is built is -1.
bool shapes_fit(Dims const& boxes, Dims const& scores) {
    auto const alike = [](int64_t a, int64_t b) { return a == b || a == -1 || b == -1; };
    return boxes.nbDims == 3 && scores.nbDims == 2 && alike(boxes.d[0], scores.d[0]) &&
           alike(boxes.d[1], scores.d[1]) && alike(boxes.d[2], 4);
}

class NmsPlugin final : public IPluginV3, public IPluginV3OneCore, public v_1_0::IPluginV3OneBuild,
                        public IPluginV3OneRuntime {
public:
    explicit NmsPlugin(Settings const& settings) : settings_(settings), stored_(&settings_) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<v_1_0::IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    IPluginV3* clone() noexcept override { return new (std::nothrow) NmsPlugin(settings_); }

    // Core
    AsciiChar const* getPluginName() const noexcept override { return NAME; }
    AsciiChar const* getPluginVersion() const noexcept override { return VERSION; }
    AsciiChar const* getPluginNamespace() const noexcept override { return ""; }

    // Build
    int32_t getNbOutputs() const noexcept override { return OUTPUTS; }

    int32_t getOutputDataTypes(DataType* types, int32_t outputs, DataType const* inputs,
                               int32_t count) const noexcept override {
        if (outputs != OUTPUTS || count != 2 || inputs[0] != DataType::kFLOAT || inputs[1] != DataType::kFLOAT)
            return -1;
        types[0] = types[3] = DataType::kINT32;
        types[1] = types[2] = DataType::kFLOAT;
        return 0;
    }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t count, DimsExprs const*, int32_t, DimsExprs* outputs,
                            int32_t output_count, IExprBuilder& builder) noexcept override {
        if (count != 2 || output_count != OUTPUTS || inputs[0].nbDims != 3 || inputs[1].nbDims != 2) return -1;
        IDimensionExpr const* batch = inputs[0].d[0];
        IDimensionExpr const* slots = builder.constant(settings_.max_det);
        int32_t const ranks[OUTPUTS] = {1, 3, 2, 2};
        for (int32_t output = 0; output < OUTPUTS; ++output) {
            outputs[output].nbDims = ranks[output];
            outputs[output].d[0] = batch;
            outputs[output].d[1] = slots;
        }
        outputs[1].d[2] = builder.constant(4);
        return 0;
    }

    bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors, int32_t inputs,
                                   int32_t outputs) noexcept override {
        if (inputs != 2 || outputs != OUTPUTS || position < 0 || position >= inputs + outputs) return false;
        bool const whole_number = position == 2 || position == 5;  // count and indices
        PluginTensorDesc const& tensor = tensors[position].desc;
        return tensor.format == TensorFormat::kLINEAR &&
               tensor.type == (whole_number ? DataType::kINT32 : DataType::kFLOAT);
    }

    int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t inputs, DynamicPluginTensorDesc const*,
                            int32_t outputs) noexcept override {
        return inputs == 2 && outputs == OUTPUTS && shapes_fit(in[0].desc.dims, in[1].desc.dims) ? 0 : -1;
    }

    // Runtime
    int32_t onShapeChange(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const*,
                          int32_t outputs) noexcept override {
        return inputs == 2 && outputs == OUTPUTS && shapes_fit(in[0].dims, in[1].dims) ? 0 : -1;
    }

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                    void* const* outputs, void*, cudaStream_t stream) noexcept override {
        return attention_pose_nms(static_cast<float const*>(inputs[0]), static_cast<float const*>(inputs[1]),
                                  static_cast<int>(in[1].dims.d[0]), static_cast<int>(in[1].dims.d[1]),
                                  settings_.iou_threshold, settings_.score_threshold, settings_.max_det,
                                  settings_.top_k, static_cast<int*>(outputs[0]), static_cast<float*>(outputs[1]),
                                  static_cast<float*>(outputs[2]), static_cast<int*>(outputs[3]), stream);
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &stored_.collection; }

private:
    Settings settings_;
    Fields stored_;  // points to settings_
};

class NmsCreator final : public IPluginCreatorV3One {
public:
    // nullptr for bad fields.
    IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const* fields, TensorRTPhase) noexcept override {
        Settings settings;
        if (fields != nullptr && !read_settings(*fields, settings)) return nullptr;
        return new (std::nothrow) NmsPlugin(settings);
    }

    PluginFieldCollection const* getFieldNames() noexcept override { return &names_.collection; }
    AsciiChar const* getPluginName() const noexcept override { return NAME; }
    AsciiChar const* getPluginVersion() const noexcept override { return VERSION; }
    AsciiChar const* getPluginNamespace() const noexcept override { return ""; }

private:
    Fields names_{nullptr};
};

}  // namespace attention_pose

#define EXPORTED extern "C" __attribute__((visibility("default")))

// What IPluginRegistry::loadLibrary looks for.
EXPORTED nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept {
    static attention_pose::NmsCreator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

// TensorRT 11 put functions in front of ILogger's and ILoggerFinder's, so a binary for both must not call them.
EXPORTED void setLoggerFinder(nvinfer1::ILoggerFinder*) noexcept {}
