# frozen_string_literal: true

require 'ffi-rzmq'
require 'msgpack'
require 'securerandom'

# A client of a Soloist gateway: chapter 2 of ../../SPEC.md, over one DEALER socket.
#
# A Client belongs to one thread. It works, heartbeats included, while that thread waits for
# something of it; one that is left alone for longer counts as gone, and begins again by itself at
# its next call.
module Soloist
  VERSION = 1
  GREETING_S = 3 # for a WELCOME, before the next socket
  MISSED_HEARTBEATS = 3
  OUTCOMES = %w[RESULT ERROR OPENED DONE REPORT].freeze

  # An ERROR: `started` is false if the prompt certainly never ran, nil if it may have.
  class Error < StandardError
    attr_reader :code, :started, :sequence, :details

    def initialize(reply)
      super("#{reply['code']}: #{reply['message']}")
      @code, @retryable, @started = reply.values_at('code', 'retryable', 'started')
      @sequence, @details = reply.values_at('sequence', 'details')
    end

    def retryable? = @retryable
  end

  # Nothing was heard of the gateway for too long, or the client was closed.
  class GatewayLost < Error
    def initialize(message)
      super('code' => 'gateway_lost', 'message' => message, 'retryable' => true, 'started' => nil)
    end
  end

  # One request. `result` waits for its outcome; a streamed one has `each`, for its messages.
  class Request
    include Enumerable

    attr_reader :id, :reply

    def initialize(client, fields)
      @client = client
      @fields = fields
      @id = fields['id']
      @heard = 0
      @unread = []
      @epoch = nil
    end

    def over? = !@reply.nil?

    # Its RESULT (or OPENED, and so on) as a Hash; raises Error if it failed.
    def result
      @client.wait { over? }
      raise @reply if @reply.is_a?(Error)

      @reply
    end

    # Give each message with its number as it arrives, and return its credit after the block.
    # Leaving the block early cancels the request; an ERROR is raised by `result` alone.
    def each
      loop do
        @client.wait { over? || !@unread.empty? }
        break if @unread.empty?

        seq, message, size = @unread.shift
        yield message, seq
        @client.tell(self, 'CREDIT', 'bytes' => size) if size
      end
    ensure
      cancel unless over?
    end

    # End it early; it still has its one outcome.
    def cancel
      @is_cancelled = true
      @client.tell(self, 'CANCEL')
    end

    # Send it again under the same id, as after a failure; it does not run twice.
    def resend = @client.transmit(self)

    # What is sent in the `epoch` of the gateway: the first time, or again.
    def for_epoch(epoch)
      @fields['resent'] = @epoch if @epoch && @fields['type'] == 'QUERY'
      @epoch ||= epoch
      @fields
    end

    def cancelled? = @is_cancelled

    def hear(reply, size)
      case reply['type']
      when 'MESSAGE' then take(reply['message'], size) if reply['seq'] == @heard + 1
      when 'ERROR' then fail_with(Error.new(reply))
      else
        # All of them, if it was sent again: those that were heard are left out.
        reply.fetch('messages', []).drop(@heard).each { |message| take(message) } if streamed?
        @reply = reply
      end
    end

    def fail_with(error) = @reply = error

    private

    def streamed? = @fields['stream']

    def take(message, size = nil)
      @heard += 1
      @unread << [@heard, message, size]
    end
  end

  # An open conversation; its `ticket` admits others, `opened` has its other names.
  class Conversation
    attr_reader :opened

    def initialize(client, opened)
      @client = client
      @opened = opened
    end

    def ticket = opened['ticket']

    # Ask in this conversation; the options are those of Client#query.
    def query(prompt, **options) = @client.query(prompt, session: opened['session'], **options)

    def status = @client.status(session: opened['session'])

    # End it for everybody; with `drain` those who wait are served first.
    def close(drain: false) = @client.ask('CLOSE', session: opened['session'], drain: drain).result
  end

  # A connection to a gateway, made again as often as needed.
  class Client
    # endpoint:: `ipc://` or `tcp://`
    # curve:: a Hash of `server_key`, `public_key` and `secret_key`, in Z85
    # secret:: 16 to 64 bytes, to come back as the same client
    # patience_s:: after so long without a word from the gateway everything fails with GatewayLost
    # A block is told of each message that no request waits for.
    def initialize(endpoint, curve: nil, secret: SecureRandom.bytes(32), patience_s: 30, &on_unasked)
      @endpoint = endpoint
      @curve = curve
      @secret = secret
      @patience_s = patience_s
      @on_unasked = on_unasked || proc {}
      @context = ZMQ::Context.new
      @pending = {} # without outcome, by id, in the order in which they were asked
      @heard_at = @pinged_at = now
      reconnect
      wait { @welcome }
    end

    # Ask one prompt, a String or an Array of content blocks; gives a Request.
    # Options: stream, timeout_ms, client, session, on_disconnect
    def query(prompt, **options) = ask('QUERY', prompt: prompt, **options)

    # Begin or join a conversation by `name`, or join by `ticket`; with neither, one's own.
    def open(name: nil, ticket: nil, client: nil)
      Conversation.new(self, ask('OPEN', name: name, ticket: ticket, client: client).result)
    end

    # How the gateway is, or one conversation.
    def status(session: nil) = ask('STATUS', session: session).result['status']

    # Disconnect. What has no outcome fails with GatewayLost.
    def close = give_up(GatewayLost.new('the client was closed'))

    def ask(type, **fields)
      raise @lost if @lost

      id = SecureRandom.bytes(16)
      said = fields.compact.transform_keys(&:to_s)
      request = @pending[id] = Request.new(self, { 'type' => type, 'id' => id, **said })
      transmit(request) unless @is_greeting
      request
    end

    # Say something about a request: of no use when it is over, or before it has been sent.
    def tell(request, type, **fields)
      send_map('type' => type, 'id' => request.id, **fields) unless request.over? || @is_greeting
    end

    def transmit(request) = send_map(request.for_epoch(@welcome['epoch']))

    # Work until the block gives something, or until `timeout_s` has passed.
    def wait(timeout_s: nil)
      deadline = timeout_s && (now + timeout_s)
      until yield || (deadline && now >= deadline)
        raise @lost if @lost

        is_heard = hear_one
        tick
        rest(deadline) unless is_heard || @lost
      end
    end

    private

    def now = Process.clock_gettime(Process::CLOCK_MONOTONIC)

    def hear_one
      payload = +''
      return false if @socket.recv_string(payload, ZMQ::DONTWAIT).negative?

      hear(payload)
      true
    end

    # Wait for a message, or for the next thing to do.
    def rest(deadline)
      until_s = [@wake_at, deadline].compact.min
      @poller.poll(((until_s - now) * 1000).ceil.clamp(0, 1000))
    end

    # -- the socket --------------------------------------------------------------------------------

    def reconnect
      @socket&.close
      @socket = @context.socket(ZMQ::DEALER)
      check @socket.setsockopt(ZMQ::LINGER, 0)
      set_keys if @curve
      check @socket.connect(@endpoint)
      @poller = ZMQ::Poller.new
      @poller.register_readable(@socket)
      say_hello
    end

    def set_keys
      check @socket.setsockopt(ZMQ::CURVE_SERVERKEY, @curve[:server_key])
      check @socket.setsockopt(ZMQ::CURVE_PUBLICKEY, @curve[:public_key])
      check @socket.setsockopt(ZMQ::CURVE_SECRETKEY, @curve[:secret_key])
    end

    def check(code)
      raise SystemCallError.new(ZMQ::Util.error_string, ZMQ::Util.errno) if code.negative?
    end

    # What does not fit, because nobody reads at the other end, is sent again after a new HELLO.
    def send_map(fields)
      @socket.send_string({ 'v' => VERSION, **fields }.to_msgpack, ZMQ::DONTWAIT)
      @sent_at = now
    end

    # Say what the gateway answers at once, if it hears.
    def send_question(fields)
      @unanswered_since ||= now
      send_map(fields)
    end

    def say_hello
      @is_greeting = true
      send_question('type' => 'HELLO', 'versions' => [VERSION], 'secret' => @secret.b)
      @wake_at = now + GREETING_S
    end

    # -- what the gateway says ---------------------------------------------------------------------

    def hear(payload)
      @heard_at = now
      @unanswered_since = nil
      reply = MessagePack.unpack(payload)
      return begin_with(reply) if reply['type'] == 'WELCOME'
      return hand_over(reply, payload.bytesize) if reply['type'] != 'ERROR'

      if reply['code'] == 'hello_required'
        say_hello unless @is_greeting # one is enough, however much was refused
      elsif @is_greeting && reply['id'].nil?
        give_up(Error.new(reply))
      else
        hand_over(reply, payload.bytesize)
      end
    end

    def hand_over(reply, size)
      id, type = reply.values_at('id', 'type')
      is_outcome = OUTCOMES.include?(type)
      request = @pending[id]
      if request.nil?
        @on_unasked.call(reply) unless type == 'PONG'
      elsif is_outcome || type == 'MESSAGE'
        @pending.delete(id) if is_outcome
        request.hear(reply, size)
      end
    end

    def begin_with(welcome)
      @welcome = welcome
      @is_greeting = false
      @pending.each_value do |request|
        transmit(request)
        request.cancel if request.cancelled?
      end
    end

    # -- time --------------------------------------------------------------------------------------

    def tick
      silent_s = @unanswered_since ? now - @unanswered_since : 0
      if silent_s >= @patience_s
        give_up(GatewayLost.new("nothing heard for #{@patience_s} s"))
      elsif @is_greeting ? now >= @wake_at : silent_s >= (MISSED_HEARTBEATS - 1) * heartbeat
        reconnect # the PING itself came after a heartbeat of silence
      elsif !@is_greeting
        ping_if_quiet
      end
    end

    def heartbeat = @welcome['heartbeat_ms'] / 1000.0

    # PING if for a heartbeat nothing was said, or nothing heard.
    def ping_if_quiet
      @wake_at = [[@sent_at, @heard_at].min, @pinged_at].max + heartbeat
      return if now < @wake_at

      send_question('type' => 'PING')
      @pinged_at = now
      @wake_at = now + heartbeat
    end

    def give_up(error)
      return if @lost

      @lost = error
      @pending.each_value { |request| request.fail_with(error) }
      @pending.clear
      @socket.close
      @context.terminate
    end
  end
end
