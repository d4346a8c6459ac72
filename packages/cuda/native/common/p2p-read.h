// Reads of peers' memory into a buffer, see ckpt_p2p_read_start.
//
// A read has a part for each peer, which keeps a few gets under way: whoever starts the read posts
// the first ones, and the thread of the peer's worker the others when some have ended.
#pragma once

#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "buffer.h"
#include "completion.h"
#include "handle-table.h"
#include "ucx-worker.h"

namespace ckpt {

class P2p;
class P2pMemory;
class P2pRemote;
struct P2pReadRun;

class P2pRead : public Object {
 public:
  static constexpr Kind kKind = Kind::p2p_read;
  struct Piece {
    std::shared_ptr<P2pRemote> remote;
    uint64_t remote_offset;
    uint64_t buffer_offset;
    uint64_t bytes;
  };

  // Ranges are checked. `signal` may be null.
  static std::shared_ptr<P2pRead> start(std::vector<Piece> pieces, std::shared_ptr<Buffer> buffer,
                                        std::shared_ptr<Signal> signal);

  // False: it runs. Throws what ended it; by then nothing writes to the buffer any more.
  bool query() const;
  // Posts nothing more, and waits for what is under way.
  void close() override;

  // What the read and its parts share. It keeps no P2p alive: a worker's own thread must not let the
  // last one go.
  struct State {
    void fail(ckpt_status status, const std::string& text);
    bool failed();
    Completion completion;
    std::mutex mutex;
    std::optional<Error> failure;  // the first one
  };
  P2pRead(std::vector<Piece> pieces, std::shared_ptr<Buffer> buffer, std::shared_ptr<State> state);
  ~P2pRead() override { close(); }

 private:
  void begin(const std::shared_ptr<P2pReadRun>& run);
  Ucx::Memory registered_for(P2p& p2p);

  const std::vector<Piece> pieces_;
  const std::shared_ptr<Buffer> buffer_;
  std::map<P2p*, std::shared_ptr<P2pMemory>> registered_;
  const std::shared_ptr<State> state_;
};

// Held by the parts of a read: completes it when the last has gone.
struct P2pReadRun {
  explicit P2pReadRun(std::shared_ptr<P2pRead::State> of) : state(std::move(of)) {}
  ~P2pReadRun();
  P2pReadRun(const P2pReadRun&) = delete;
  const std::shared_ptr<P2pRead::State> state;
};

// The parts of reads whose peers one worker is connected to.
class P2pReads {
 public:
  // A range that is not asked for yet. The read keeps both ends until it is complete.
  struct Range {
    P2pRemote* from;
    uint64_t offset;
    uint8_t* to;
    uint64_t bytes;
  };
  struct Part {
    std::shared_ptr<P2pReadRun> run;
    Ucx::Memory registered = nullptr;
    std::deque<Range> left;
    std::vector<UcxWorker::Pending> under_way;
  };

  void add(Part part);
  // By the worker's thread, when something has ended.
  void step();

 private:
  // Whether the part has ended.
  static bool step(Part& part);
  static void take_ended(Part& part);
  static void post(Part& part);

  std::mutex mutex_;
  std::list<Part> parts_;
};

}  // namespace ckpt
