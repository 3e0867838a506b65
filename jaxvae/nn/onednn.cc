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
  dnnl::primitive convolution;
  memory x, k, y, own_k, scratchpad;  // own_k: the kernel in the order that the primitive wants
};

Made make(int64_t wanted, const dnnl::engine& cpu, const memory::desc& x, const memory::desc& k,
          const memory::desc& y, const memory::dims& stride, const memory::dims& before,
          const memory::dims& after) {
  using namespace dnnl;
  const auto direct = algorithm::convolution_direct;
  const memory::desc any(k.get_dims(), k.get_data_type(), tag::any);
  primitive_attr attr;
  attr.set_scratchpad_mode(scratchpad_mode::user);
  convolution_forward::primitive_desc forward(cpu, prop_kind::forward_training, direct, x, any, y,
                                              stride, before, after, attr);
  Made made;
  auto keep = [&](const primitive& p, const memory::desc& own_k, const memory::desc& scratchpad) {
    made = {p, memory(x, cpu, nullptr), memory(k, cpu, nullptr), memory(y, cpu, nullptr),
            memory(own_k, cpu), memory(scratchpad, cpu)};
  };
  if (wanted == Y) {
    keep(convolution_forward(forward), forward.weights_desc(), forward.scratchpad_desc());
  } else if (wanted == X) {
    convolution_backward_data::primitive_desc d(cpu, direct, x, any, y, stride, before, after,
                                                forward, attr);
    keep(convolution_backward_data(d), d.weights_desc(), d.scratchpad_desc());
  } else {
    convolution_backward_weights::primitive_desc d(cpu, direct, x, any, y, stride, before, after,
                                                   forward, attr);
    keep(convolution_backward_weights(d), d.diff_weights_desc(), d.scratchpad_desc());
  }
  return made;
}

void run(int64_t wanted, dnnl::stream& stream, Made& m) {
  std::unordered_map<int, memory> args{{DNNL_ARG_SCRATCHPAD, m.scratchpad}};
  if (wanted != K) dnnl::reorder(m.k, m.own_k).execute(stream, m.k, m.own_k);
  if (wanted == Y) {
    args.insert({{DNNL_ARG_SRC, m.x}, {DNNL_ARG_WEIGHTS, m.own_k}, {DNNL_ARG_DST, m.y}});
  } else if (wanted == X) {
    args.insert({{DNNL_ARG_DIFF_SRC, m.x}, {DNNL_ARG_WEIGHTS, m.own_k}, {DNNL_ARG_DIFF_DST, m.y}});
  } else {
    args.insert({{DNNL_ARG_SRC, m.x}, {DNNL_ARG_DIFF_WEIGHTS, m.own_k}, {DNNL_ARG_DIFF_DST, m.y}});
  }
  m.convolution.execute(stream, args);
  if (wanted == K) dnnl::reorder(m.own_k, m.k).execute(stream, m.own_k, m.k);
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
      Made made = make(wanted, cpu, image(x), kernel, image(y), {window[0], window[1]},
                       {window[2], window[3]}, {window[4], window[5]});
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
