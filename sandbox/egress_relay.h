// Moves bytes between the two sockets of a proxied connection: one direction of a tunnel, or one
// HTTP message. Internal to the proxy; all on its io thread.
#ifndef AGENTD_SANDBOX_EGRESS_RELAY_H_
#define AGENTD_SANDBOX_EGRESS_RELAY_H_

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/buffer_body.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/serializer.hpp>
#include <boost/beast/http/write.hpp>
#include <cstddef>
#include <memory>

namespace agentd::sandbox {

enum class EgressWay { kUp, kDown };
enum class EgressEnd {
  kDone,         // the message, or the direction's end of file, was passed on
  kReadFailed,   // the side it comes from
  kWriteFailed,  // the side it goes to
};

// The connection, as its relays see it. Once it has stopped a relay it hears no more of that.
class EgressRelayOwner {
 public:
  virtual ~EgressRelayOwner() = default;
  // Keeps the connection, its sockets and its relays alive while an operation is under way.
  virtual std::shared_ptr<void> KeepAlive() = 0;
  virtual void Moved(EgressWay way, size_t bytes) = 0;
  virtual void Ended(EgressWay way, EgressEnd end, boost::system::error_code error) = 0;
};

using EgressBuffer = std::array<char, 32 * 1024>;

// Everything that comes, until the end of file, which is passed on as a half-close.
class TunnelRelay {
 public:
  TunnelRelay(boost::asio::ip::tcp::socket& from, boost::asio::ip::tcp::socket& to, EgressWay way,
              EgressRelayOwner& owner)
      : from_(from), to_(to), way_(way), owner_(owner) {}

  // `first`: what was read before; not longer than an EgressBuffer.
  void Start(boost::asio::const_buffer first) {
    const size_t size = boost::asio::buffer_copy(boost::asio::buffer(data_), first);
    if (size > 0) {
      Write(size);
    } else {
      Read();
    }
  }
  void Stop() { stopped_ = true; }

 private:
  void Read() {
    from_.async_read_some(
        boost::asio::buffer(data_),
        [this, keep = owner_.KeepAlive()](boost::system::error_code error, size_t size) {
          if (stopped_) return;
          if (error == boost::asio::error::eof) {
            boost::system::error_code ignored;
            to_.shutdown(boost::asio::ip::tcp::socket::shutdown_send, ignored);
            owner_.Ended(way_, EgressEnd::kDone, {});
          } else if (error) {
            owner_.Ended(way_, EgressEnd::kReadFailed, error);
          } else {
            Write(size);
          }
        });
  }
  void Write(size_t size) {
    boost::asio::async_write(
        to_, boost::asio::buffer(data_, size),
        [this, keep = owner_.KeepAlive()](boost::system::error_code error, size_t written) {
          if (stopped_) return;
          owner_.Moved(way_, written);
          if (stopped_) return;
          if (error) {
            owner_.Ended(way_, EgressEnd::kWriteFailed, error);
          } else {
            Read();
          }
        });
  }

  boost::asio::ip::tcp::socket& from_;
  boost::asio::ip::tcp::socket& to_;
  const EgressWay way_;
  EgressRelayOwner& owner_;
  bool stopped_ = false;
  EgressBuffer data_;
};

// One message whose header `parser` has read and the caller has rewritten. The body is taken apart
// and framed anew, so what leaves is one message whatever the bytes that came.
template <bool kIsRequest>
class MessageRelay {
 public:
  using Parser = boost::beast::http::parser<kIsRequest, boost::beast::http::buffer_body>;

  MessageRelay(boost::asio::ip::tcp::socket& from, boost::beast::flat_buffer& read_ahead,
               Parser& parser, boost::asio::ip::tcp::socket& to, EgressWay way,
               EgressRelayOwner& owner)
      : from_(from),
        read_ahead_(read_ahead),
        parser_(parser),
        serializer_(parser.get()),
        to_(to),
        way_(way),
        owner_(owner) {}

  void Start() {
    // An eager parser would wait for the chunk after one that is here.
    parser_.eager(false);
    boost::beast::http::async_write_header(
        to_, serializer_,
        [this, keep = owner_.KeepAlive()](boost::system::error_code error, size_t written) {
          // Without a body the serializer has no more to write, not even a chunked one's end.
          OnWritten(error, written, parser_.is_done());
        });
  }
  void Stop() { stopped_ = true; }

 private:
  void Read() {
    parser_.get().body().data = data_.data();
    parser_.get().body().size = data_.size();
    boost::beast::http::async_read_some(
        from_, read_ahead_, parser_,
        [this, keep = owner_.KeepAlive()](boost::system::error_code error, size_t) {
          if (stopped_) return;
          if (error && error != boost::beast::http::error::need_buffer) {
            owner_.Ended(way_, EgressEnd::kReadFailed, error);
            return;
          }
          auto& body = parser_.get().body();
          body.size = data_.size() - body.size;
          if (body.size == 0 && !parser_.is_done()) {
            Read();  // a part of a chunk's header
            return;
          }
          // An empty last buffer would be framed as a chunk of its own: a second end.
          body.data = body.size > 0 ? data_.data() : nullptr;
          body.more = !parser_.is_done();
          Write();
        });
  }
  void Write() {
    boost::beast::http::async_write(
        to_, serializer_,
        [this, keep = owner_.KeepAlive()](boost::system::error_code error, size_t written) {
          if (error == boost::beast::http::error::need_buffer) error = {};
          OnWritten(error, written, parser_.is_done());
        });
  }
  void OnWritten(boost::system::error_code error, size_t written, bool done) {
    if (stopped_) return;
    owner_.Moved(way_, written);
    if (stopped_) return;
    if (error) {
      owner_.Ended(way_, EgressEnd::kWriteFailed, error);
    } else if (done) {
      owner_.Ended(way_, EgressEnd::kDone, {});
    } else {
      Read();
    }
  }

  boost::asio::ip::tcp::socket& from_;
  boost::beast::flat_buffer& read_ahead_;
  Parser& parser_;
  boost::beast::http::serializer<kIsRequest, boost::beast::http::buffer_body> serializer_;
  boost::asio::ip::tcp::socket& to_;
  const EgressWay way_;
  EgressRelayOwner& owner_;
  bool stopped_ = false;
  EgressBuffer data_;
};

}  // namespace agentd::sandbox

#endif  // AGENTD_SANDBOX_EGRESS_RELAY_H_
