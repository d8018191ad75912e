// No argument may share memory with one that is written.
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "checks.h"

namespace revdeq {

// The bytes that a tensor may access, from the first to one past the last.
struct Span {
  const char* name;
  const char* begin;
  const char* end;
  bool written;
  size_t leaf = 0;

  bool meets(const Span& other) const {
    return (written || other.written) && begin < other.end && other.begin < end;
  }
};

inline Span span(const Argument& a, bool written, size_t leaf = 0) {
  const char* begin = static_cast<const char*>(a.tensor.const_data_ptr());
  if (a.numel == 0) return {a.name, begin, begin, written, leaf};
  int64_t last = 0;
  for (size_t i = 0; i < a.sizes.size(); ++i) last += (a.sizes[i] - 1) * a.strides[i];
  const char* end = begin + (last + 1) * static_cast<int64_t>(a.tensor.element_size());
  return {a.name, begin, end, written, leaf};
}

// The arguments of one call, each checked against those before it.
class Spans {
 public:
  void written(const Argument& a) { add(span(a, true)); }
  void read(const Argument& a) { add(span(a, false)); }
  void shared(const Argument& a) { written(a); }

 private:
  void add(const Span& mine) {
    for (size_t i = 0; i < count_; ++i)
      if (mine.meets(entries_[i])) refuse(mine.name, std::string("overlaps ") + entries_[i].name);
    entries_[count_++] = mine;
  }

  Span entries_[8];
  size_t count_ = 0;
};

// The arguments of every leaf of a list, each checked against those of the preceding leaves.
class LeafSpans {
 public:
  void written(const Argument& a) { spans_.push_back(span(a, true, leaf_)); }
  void read(const Argument& a) { spans_.push_back(span(a, false, leaf_)); }
  void shared(const Argument&) {}  // shared by all leaves; checked in each leaf's own call
  void next_leaf() { ++leaf_; }

  void check() const {
    if (any_meet()) refuse_first();
  }

 private:
  // In memory order: does one start before the end of its predecessors?
  bool any_meet() const {
    std::vector<Span> sorted = spans_;
    std::sort(sorted.begin(), sorted.end(),
              [](const Span& a, const Span& b) { return a.begin < b.begin; });
    const char *end = nullptr, *written_end = nullptr;
    for (const Span& mine : sorted) {
      if (mine.begin == mine.end) continue;
      if (mine.begin < (mine.written ? end : written_end)) return true;
      end = std::max(end, mine.end);
      if (mine.written) written_end = std::max(written_end, mine.end);
    }
    return false;
  }

  void refuse_first() const {
    for (size_t i = 0; i < spans_.size(); ++i)
      for (size_t j = 0; j < i; ++j)
        if (spans_[i].leaf != spans_[j].leaf && spans_[i].meets(spans_[j]))
          refuse("leaf " + std::to_string(spans_[i].leaf) + ": " + spans_[i].name,
                 std::string("overlaps ") + spans_[j].name + " of leaf " +
                     std::to_string(spans_[j].leaf));
  }

  size_t leaf_ = 0;
  std::vector<Span> spans_;
};

}  // namespace revdeq
