// Strided convolutions of NHWC images with HWIO kernels by oneDNN 3, as an XLA foreign function:
// the output y of x and k, or the gradient by x or by k. One primitive is kept for each shape.

#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;
using tag = memory::format_tag;

namespace {

enum Wanted : int64_t { Y = 0, X = 1, K = 2 };

struct Made {
  dnnl::primitive primitive;
  memory x, k, y, own_k;  // own_k: the kernel in the order that the primitive wants, or k itself
  std::unordered_map<int, memory> arguments;
};

// of 1x1 kernels and stride 1: y = x k, x = y k^T, k = x^T y, a row for each pixel
Made product(int64_t wanted, const dnnl::engine& cpu, const memory::desc& x, const memory::desc& k,
             const memory::desc& y) {
  const auto d = x.get_dims();
  const int64_t rows = d[0] * d[2] * d[3], n = d[1], m = y.get_dims()[1];
  auto matrix = [&](int64_t i, int64_t j, tag order = tag::ab) {
    return memory::desc({i, j}, x.get_data_type(), order);
  };
  auto of = [&](const memory::desc& a, const memory::desc& b, const memory::desc& c) {
    return dnnl::matmul(dnnl::matmul::primitive_desc(cpu, a, b, c));
  };
  Made made{{}, memory(x, cpu, nullptr), memory(k, cpu, nullptr), memory(y, cpu, nullptr)};
  made.own_k = made.k;
  if (wanted == Y) {
    made.primitive = of(matrix(rows, n), matrix(n, m), matrix(rows, m));
    made.arguments = {{DNNL_ARG_SRC, made.x}, {DNNL_ARG_WEIGHTS, made.k}, {DNNL_ARG_DST, made.y}};
  } else if (wanted == X) {
    made.primitive = of(matrix(rows, m), matrix(m, n, tag::ba), matrix(rows, n));
    made.arguments = {{DNNL_ARG_SRC, made.y}, {DNNL_ARG_WEIGHTS, made.k}, {DNNL_ARG_DST, made.x}};
  } else {
    made.primitive = of(matrix(n, rows, tag::ba), matrix(rows, m), matrix(n, m));
    made.arguments = {{DNNL_ARG_SRC, made.x}, {DNNL_ARG_WEIGHTS, made.y}, {DNNL_ARG_DST, made.k}};
  }
  return made;
}

Made convolution(int64_t wanted, const dnnl::engine& cpu, const memory::desc& x,
                 const memory::desc& k, const memory::desc& y, const memory::dims& stride,
                 const memory::dims& before, const memory::dims& after) {
  using namespace dnnl;
  const auto direct = algorithm::convolution_direct;
  const memory::desc any(k.get_dims(), k.get_data_type(), tag::any);
  convolution_forward::primitive_desc forward(cpu, prop_kind::forward_training, direct, x, any, y,
                                              stride, before, after);
  Made made{{}, memory(x, cpu, nullptr), memory(k, cpu, nullptr), memory(y, cpu, nullptr)};
  if (wanted == Y) {
    made.primitive = convolution_forward(forward);
    made.own_k = memory(forward.weights_desc(), cpu);
    made.arguments = {{DNNL_ARG_SRC, made.x}, {DNNL_ARG_WEIGHTS, made.own_k},
                      {DNNL_ARG_DST, made.y}};
  } else if (wanted == X) {
    convolution_backward_data::primitive_desc back(cpu, direct, x, any, y, stride, before, after,
                                                   forward);
    made.primitive = convolution_backward_data(back);
    made.own_k = memory(back.weights_desc(), cpu);
    made.arguments = {{DNNL_ARG_DIFF_SRC, made.x}, {DNNL_ARG_WEIGHTS, made.own_k},
                      {DNNL_ARG_DIFF_DST, made.y}};
  } else {
    convolution_backward_weights::primitive_desc back(cpu, direct, x, any, y, stride, before,
                                                      after, forward);
    made.primitive = convolution_backward_weights(back);
    made.own_k = memory(back.diff_weights_desc(), cpu);
    made.arguments = {{DNNL_ARG_SRC, made.x}, {DNNL_ARG_DIFF_WEIGHTS, made.own_k},
                      {DNNL_ARG_DIFF_DST, made.y}};
  }
  return made;
}

void run(int64_t wanted, dnnl::stream& stream, Made& m) {
  const bool own = m.own_k.get() != m.k.get();
  if (own && wanted != K) dnnl::reorder(m.k, m.own_k).execute(stream, m.k, m.own_k);
  m.primitive.execute(stream, m.arguments);
  if (own && wanted == K) dnnl::reorder(m.own_k, m.k).execute(stream, m.own_k, m.k);
  stream.wait();
}

// T(x, k, y) = <conv(x, k), y>; two of the three come in, in this order, and the third goes out
ffi::Error convolve(ffi::AnyBuffer first, ffi::AnyBuffer second, ffi::Result<ffi::AnyBuffer> out,
                    int64_t wanted, ffi::Span<const int64_t> window) {
  const ffi::AnyBuffer& x = wanted == X ? *out : first;
  const ffi::AnyBuffer& k = wanted == K ? *out : wanted == X ? first : second;
  const ffi::AnyBuffer& y = wanted == Y ? *out : second;
  std::vector<int64_t> shape{wanted, static_cast<int64_t>(x.element_type())};
  shape.insert(shape.end(), window.begin(), window.end());
  for (const auto& buffer : {x, k, y})
    shape.insert(shape.end(), buffer.dimensions().begin(), buffer.dimensions().end());
  if (x.element_count() == 0 || y.element_count() == 0) {
    std::memset(out->untyped_data(), 0, out->size_bytes());
    return ffi::Error::Success();
  }

  static std::mutex one_at_a_time;
  static std::map<std::vector<int64_t>, Made> all;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  try {
    static dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
    static dnnl::stream stream(cpu);
    auto found = all.find(shape);
    if (found == all.end()) {
      const auto type = x.element_type() == ffi::DataType::BF16 ? memory::data_type::bf16
                                                                : memory::data_type::f32;
      auto image = [&](const ffi::AnyBuffer& b) {
        const auto d = b.dimensions();
        return memory::desc({d[0], d[3], d[1], d[2]}, type, tag::nhwc);
      };
      const auto d = k.dimensions();
      const memory::desc kernel({d[3], d[2], d[0], d[1]}, type, tag::hwio);
      const bool dense = d[0] == 1 && d[1] == 1 && window[0] == 1 && window[1] == 1;
      Made made = dense ? product(wanted, cpu, image(x), kernel, image(y))
                        : convolution(wanted, cpu, image(x), kernel, image(y),
                                      {window[0], window[1]}, {window[2], window[3]},
                                      {window[4], window[5]});
      found = all.emplace(std::move(shape), std::move(made)).first;
    }
    Made& m = found->second;
    m.x.set_data_handle(x.untyped_data());
    m.k.set_data_handle(k.untyped_data());
    m.y.set_data_handle(y.untyped_data());
    run(wanted, stream, m);
  } catch (const dnnl::error& e) {
    return ffi::Error::Internal(e.what());
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxvaeConvolve, convolve,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<int64_t>("wanted")
                                  .Attr<ffi::Span<const int64_t>>("window"));
