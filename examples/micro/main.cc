// Runs the model of model.cc once, on a blank input, and prints what it computes and takes.

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "model.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

// Newer sources have the runtime in tflite::micro, older ones in tflite.
namespace tflite {
namespace micro {}
using namespace micro;
}  // namespace tflite

namespace {
// Some more than the file says: printf and the like take none of it, but other kernels may.
constexpr size_t kArenaSize = model_arena_size + 1024;
alignas(16) uint8_t arena[kArenaSize];
}  // namespace

int main() {
  tflite::MicroMutableOpResolver<model_operators> resolver;
  if (!model_register(resolver)) {
    std::puts("an operator could not be registered");
    return 1;
  }
  tflite::MicroInterpreter interpreter(tflite::GetModel(model), resolver, arena, kArenaSize);
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    std::puts("the arena is too small, or the runtime lacks an operator");
    return 1;
  }
  TfLiteTensor* input = interpreter.input(0);
  std::memset(input->data.int8, input->params.zero_point, input->bytes);
  if (interpreter.Invoke() != kTfLiteOk) {
    std::puts("the model did not run");
    return 1;
  }
  const TfLiteTensor* output = interpreter.output(0);
  for (size_t i = 0; i < output->bytes; ++i) {
    const float value = (output->data.int8[i] - output->params.zero_point) * output->params.scale;
    std::printf("%zu: %.4f\n", i, static_cast<double>(value));
  }
  std::printf("%zu bytes of model, %zu of %zu bytes of arena\n", model_size,
              interpreter.arena_used_bytes(), kArenaSize);
  return 0;
}
