// The Python module. Arrays are checked here, residue by residue; work runs without Python's lock.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <numeric>
#include <optional>
#include <stdexcept>

#include "encoder.hpp"
#include "evaluator.hpp"
#include "expand.hpp"

namespace nb = nanobind;

namespace {

using namespace tg;

template <std::size_t kDimensions>
using Words = nb::ndarray<const u64, nb::ndim<kDimensions>, nb::c_contig, nb::device::cpu>;
using Reals = nb::ndarray<const double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Integers = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Unlocked = nb::call_guard<nb::gil_scoped_release>;
using Ct = std::shared_ptr<Ciphertext>;
using Pt = std::shared_ptr<Plaintext>;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

struct Context {
  std::shared_ptr<const Ring> ring;
  Encoder encoder;

  Context(std::size_t degree, const std::vector<u64>& primes, unsigned threads,
          const std::string& kernels)
      : ring(std::make_shared<Ring>(degree, primes, threads, kernels)), encoder(*ring) {}
};

// The numbers of the primes of a polynomial: 0 … level - 1, and the special one if `extended`.
std::vector<std::size_t> places_of(const Ring& ring, std::size_t level, bool extended) {
  require(level >= 1 && level <= ring.levels(), "there is no such level");
  std::vector<std::size_t> places(level);
  std::iota(places.begin(), places.end(), std::size_t{0});
  if (extended) places.push_back(ring.special());
  return places;
}

// Copies residues of polynomials over `places`. Throws if one is not below its prime.
void take(u64* out, const u64* in, std::size_t polynomials, const Ring& ring,
          const std::vector<std::size_t>& places) {
  const std::size_t n = ring.degree();
  for (std::size_t i = 0; i < polynomials * places.size(); ++i) {
    const u64 q = ring.modulus(places[i % places.size()]).value;
    bool below = true;
    for (std::size_t j = i * n; j < (i + 1) * n; ++j) {
      below &= in[j] < q;
      out[j] = in[j];
    }
    require(below, "a residue is not below its prime");
  }
}

Ct take_ciphertext(const Context& context, const Words<3>& array) {
  const Ring& ring = *context.ring;
  const std::size_t size = array.shape(0), level = array.shape(1);
  require((size == 2 || size == 3) && array.shape(2) == ring.degree(),
          "a ciphertext is an array (2 or 3, level, degree)");
  const auto places = places_of(ring, level, false);
  auto out = std::make_shared<Ciphertext>(
      Ciphertext{context.ring, size, level, ring.buffer(size * level)});
  const nb::gil_scoped_release unlocked;
  take(out->data.data(), array.data(), size, ring, places);
  return out;
}

Ct take_seeded(const Context& context, const Words<2>& array, const nb::bytes& seed) {
  const Ring& ring = *context.ring;
  const std::size_t level = array.shape(0);
  require(array.shape(1) == ring.degree(), "a polynomial is an array (level, degree)");
  require(seed.size() == kSeedBytes, "a seed has 64 bytes");
  const auto places = places_of(ring, level, false);
  auto out =
      std::make_shared<Ciphertext>(Ciphertext{context.ring, 2, level, ring.buffer(2 * level)});
  const std::span<const std::uint8_t> bytes(static_cast<const std::uint8_t*>(seed.data()),
                                            seed.size());
  const nb::gil_scoped_release unlocked;
  take(out->polynomial(0), array.data(), 1, ring, places);
  expand_uniform(out->polynomial(1), ring, places, bytes);
  return out;
}

Pt take_plaintext(const Context& context, const Words<2>& array, bool extended) {
  const Ring& ring = *context.ring;
  require(array.shape(0) > extended && array.shape(1) == ring.degree(),
          "a plaintext is an array (level, degree), with one more row if it is extended");
  const std::size_t level = array.shape(0) - extended;
  const auto places = places_of(ring, level, extended);
  auto out = std::make_shared<Plaintext>(
      Plaintext{context.ring, level, extended, ring.buffer(places.size())});
  const nb::gil_scoped_release unlocked;
  take(out->data.data(), array.data(), 1, ring, places);
  return out;
}

std::shared_ptr<SwitchingKey> take_key(const Context& context, const Words<4>& array) {
  const Ring& ring = *context.ring;
  const std::size_t levels = ring.levels();
  require(array.shape(0) == levels && array.shape(1) == 2 && array.shape(2) == levels + 1 &&
              array.shape(3) == ring.degree(),
          "a key is an array (levels, 2, levels + 1, degree)");
  const auto places = places_of(ring, levels, true);
  auto out = std::make_shared<SwitchingKey>(
      SwitchingKey{context.ring, ring.buffer(levels * 2 * places.size())});
  const nb::gil_scoped_release unlocked;
  take(out->data.data(), array.data(), 2 * levels, ring, places);
  return out;
}

// A key whose second halves are seeds; `bodies` and `seeds` hold one entry for each digit.
std::shared_ptr<SwitchingKey> take_seeded_key(const Context& context,
                                                    const std::vector<Words<2>>& bodies,
                                                    const nb::bytes& seeds) {
  const Ring& ring = *context.ring;
  const std::size_t levels = ring.levels();
  require(bodies.size() == levels && seeds.size() == levels * kSeedBytes,
          "a key has a body and a seed for each data prime");
  const auto places = places_of(ring, levels, true);
  for (const auto& body : bodies)
    require(body.shape(0) == places.size() && body.shape(1) == ring.degree(),
            "a body is an array (levels + 1, degree)");
  auto out = std::make_shared<SwitchingKey>(
      SwitchingKey{context.ring, ring.buffer(levels * 2 * places.size())});
  const auto* bytes = static_cast<const std::uint8_t*>(seeds.data());
  const std::size_t words = places.size() * ring.degree();
  const nb::gil_scoped_release unlocked;
  ring.parallel(levels, [&](std::size_t j) {
    u64* to = out->data.data() + 2 * j * words;
    take(to, bodies[j].data(), 1, ring, places);
    expand_uniform(to + words, ring, places, {bytes + j * kSeedBytes, kSeedBytes});
  });
  return out;
}

using Array = nb::ndarray<nb::numpy, u64>;

Array give(const u64* data, std::initializer_list<std::size_t> shape) {
  const std::size_t words =
      std::accumulate(shape.begin(), shape.end(), std::size_t{1}, std::multiplies<>());
  auto memory = std::make_unique<u64[]>(words);
  std::memcpy(memory.get(), data, words * sizeof(u64));
  u64* raw = memory.release();
  nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<u64*>(p); });
  return Array(raw, shape, owner);
}

Ct share(Ciphertext&& x) { return std::make_shared<Ciphertext>(std::move(x)); }

std::shared_ptr<Transform> make_transform(const Context& context, std::size_t level,
                                          std::vector<u64> baby, std::vector<u64> giant,
                                          const nb::list& diagonals) {
  auto transform = std::make_shared<Transform>(
      Transform{context.ring, level, std::move(baby), std::move(giant), {}});
  for (const nb::handle row : diagonals) {
    auto& out = transform->diagonals.emplace_back();
    for (const nb::handle item : nb::cast<nb::list>(row))
      out.push_back(item.is_none() ? nullptr : nb::cast<std::shared_ptr<Plaintext>>(item));
  }
  transform->check();
  return transform;
}

}  // namespace

NB_MODULE(_native, m) {
  nb::class_<Ciphertext>(m, "Ciphertext")
      .def_ro("size", &Ciphertext::size)
      .def_ro("level", &Ciphertext::level)
      .def("residues", [](const Ciphertext& x) {
        return give(x.data.data(), {x.size, x.level, x.ring->degree()});
      });
  nb::class_<Plaintext>(m, "Plaintext")
      .def_ro("level", &Plaintext::level)
      .def_ro("extended", &Plaintext::extended)
      .def("residues", [](const Plaintext& x) {
        return give(x.data.data(), {x.level + x.extended, x.ring->degree()});
      });
  nb::class_<SwitchingKey>(m, "SwitchingKey").def("residues", [](const SwitchingKey& key) {
    const std::size_t levels = key.ring->levels();
    return give(key.data.data(), {levels, 2, levels + 1, key.ring->degree()});
  });
  nb::class_<Keys>(m, "Keys")
      .def(nb::init<>())
      .def("add_rotation",
           [](Keys& keys, u64 element, std::shared_ptr<SwitchingKey> key) {
             require(key && element % 2 == 1 && element < 2 * key->ring->degree(),
                     "a Galois element is odd and below twice the ring degree");
             key->ring->permutation(element);
             keys.rotations.insert_or_assign(element, std::move(key));
           })
      .def("set_relinearisation", [](Keys& keys, std::shared_ptr<SwitchingKey> key) {
        require(key != nullptr, "there is no key");
        keys.relinearisation = std::move(key);
      });
  nb::class_<Transform>(m, "Transform").def("apply", [](const Transform& t, const Ciphertext& x, const Keys& keys) {
    return share(t.apply(x, keys));
  }, Unlocked());

  nb::class_<Context>(m, "Context")
      .def(nb::init<std::size_t, const std::vector<u64>&, unsigned, const std::string&>(),
           nb::arg("degree"), nb::arg("primes"), nb::kw_only(), nb::arg("threads") = 1,
           nb::arg("kernels") = "auto", Unlocked())
      .def_prop_ro("kernels", [](const Context& c) { return c.ring->fastest().name; })
      .def_prop_ro("degree", [](const Context& c) { return c.ring->degree(); })
      .def_prop_ro("levels", [](const Context& c) { return c.ring->levels(); })
      .def("ciphertext", &take_ciphertext, nb::arg("residues").noconvert())
      .def("seeded_ciphertext", &take_seeded, nb::arg("body").noconvert(), nb::arg("seed"))
      .def("plaintext", &take_plaintext, nb::arg("residues").noconvert(), nb::arg("extended") = false)
      .def("key", &take_key, nb::arg("residues").noconvert())
      .def("seeded_key", &take_seeded_key, nb::arg("bodies").noconvert(), nb::arg("seeds"))
      .def("encode",
           [](const Context& c, const Reals& slots, std::size_t level, double scale,
              bool extended) -> Pt {
             const nb::gil_scoped_release unlocked;
             return std::make_shared<Plaintext>(c.encoder.encode(
                 c.ring, {slots.data(), slots.shape(0)}, level, scale, extended));
           },
           nb::arg("slots"), nb::arg("level"), nb::arg("scale"), nb::arg("extended") = false)
      .def("transform", &make_transform, nb::arg("level"), nb::arg("baby"), nb::arg("giant"),
           nb::arg("diagonals"))
      .def("ntt",
           [](const Context& c, const nb::ndarray<const u64, nb::ndim<1>, nb::c_contig>& x,
              std::size_t place, bool inverse) {
             const Ring& ring = *c.ring;
             require(place <= ring.levels() && x.shape(0) == ring.degree(),
                     "there is no such prime, or the polynomial has another degree");
             Buffer values = ring.buffer(1);
             take(values.data(), x.data(), 1, ring, {place});
             const Kernels& k = ring.kernels(place);
             (inverse ? k.inverse_ntt : k.ntt)(values.data(), values.data(), ring.tables(place));
             return give(values.data(), {ring.degree()});
           },
           nb::arg("values").noconvert(), nb::arg("place"), nb::arg("inverse") = false);

  m.def("add", [](const Ciphertext& a, const Ciphertext& b) { return share(add(a, b)); },
        Unlocked());
  m.def("subtract", [](const Ciphertext& a, const Ciphertext& b) { return share(subtract(a, b)); },
        Unlocked());
  m.def("add_plain", [](const Ciphertext& a, const Plaintext& b) { return share(add_plain(a, b)); },
        Unlocked());
  m.def("multiply_plain",
        [](const Ciphertext& a, const Plaintext& b) { return share(multiply_plain(a, b)); },
        Unlocked());
  m.def("multiply", [](const Ciphertext& a, const Ciphertext& b) { return share(multiply(a, b)); },
        Unlocked());
  m.def("relinearise",
        [](const Ciphertext& a, const Keys& keys) { return share(relinearise(a, keys)); },
        Unlocked());
  m.def("relinearise_rescale",
        [](const Ciphertext& a, const Keys& keys) { return share(relinearise_rescale(a, keys)); },
        Unlocked());
  m.def("rescale", [](const Ciphertext& a) { return share(rescale(a)); }, Unlocked());
  m.def("drop", [](const Ciphertext& a, std::size_t level) { return share(drop(a, level)); },
        Unlocked());
  m.def("rotate",
        [](const Ciphertext& a, u64 element, const Keys& keys) {
          return share(rotate(a, element, keys));
        },
        Unlocked());
  m.def("rotations",
        [](const Ciphertext& a, const std::vector<u64>& elements, const Keys& keys) {
          std::vector<Ct> out;
          for (Ciphertext& x : rotations(a, elements, keys)) out.push_back(share(std::move(x)));
          return out;
        },
        Unlocked());
  m.def("fold",
        [](const Ciphertext& a, const std::vector<u64>& elements, const Keys& keys) {
          return share(fold(a, elements, keys));
        },
        Unlocked());
  m.def("combine",
        [](const std::vector<std::shared_ptr<Ciphertext>>& columns, const Integers& weights) {
          require(weights.shape(1) == columns.size(), "there is one weight for each column");
          std::vector<const Ciphertext*> pointers;
          for (const auto& column : columns) {
            require(column != nullptr, "a column is missing");
            pointers.push_back(column.get());
          }
          const std::vector<std::int64_t> flat(weights.data(), weights.data() + weights.size());
          const std::size_t rows = weights.shape(0);
          std::vector<Ct> out;
          const nb::gil_scoped_release unlocked;
          for (Ciphertext& x : combine(pointers, flat, rows)) out.push_back(share(std::move(x)));
          return out;
        },
        nb::arg("columns"), nb::arg("weights").noconvert());
  m.def("available_kernels", &available_kernels);
}
