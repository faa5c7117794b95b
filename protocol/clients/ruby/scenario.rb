# frozen_string_literal: true

# Plays the scenarios of chapter 3 of ../../SPEC.md: `ruby scenario.rb ENDPOINT`.

require 'json'
require_relative 'soloist'

LISTEN_S = 1
$stdout.sync = true

def show(line) = puts(JSON.generate(line))
def hex(bytes) = bytes.unpack1('H*')

# What a line says of the outcome of a request, or of whatever the block does.
def outcome_of(request = nil, *more)
  reply = request ? request.result : yield
  { 'text' => reply['text'], **reply.slice(*more) }
rescue Soloist::GatewayLost
  raise
rescue Soloist::Error => e
  { 'error' => { 'code' => e.code, 'retryable' => e.retryable?, 'started' => e.started } }
end

def map(gateway, prompts:, window:, client: nil, **)
  waiting = {}
  prompts.each_with_index do |prompt, index|
    show_settled(gateway, waiting) while waiting.size >= window
    waiting[index] = gateway.query(prompt, client: client)
  end
  show_settled(gateway, waiting) until waiting.empty?
end

def show_settled(gateway, waiting)
  gateway.wait { waiting.each_value.any?(&:over?) }
  settled = waiting.select { |_, request| request.over? }
  settled.each { |index, request| show('index' => index, **outcome_of(request)) }
  waiting.delete_if { |index, _| settled.key?(index) }
end

def with_conversation(gateway, name: nil, ticket: nil, client: nil, **)
  chat = gateway.open(name: name, ticket: ticket && [ticket].pack('H*'), client: client)
rescue Soloist::Error => e
  show(outcome_of { raise e })
else
  yield chat
end

def shared(gateway, count:, label:, stream:, **names)
  with_conversation(gateway, **names) do |chat|
    opened = chat.opened
    ids = { 'session' => hex(opened['session']), 'ticket' => hex(opened['ticket']) }
    show('opened' => { **ids, **opened.slice('endpoint', 'incarnation') })
    count.times do |index|
      request = chat.query("#{label}-#{index}", stream: stream)
      pieces = stream ? request.count : 0
      line = outcome_of(request, 'sequence', 'num_turns')
      show('index' => index, **line, **(line['text'] ? { 'pieces' => pieces } : {}))
    end
  end
end

def cancel(gateway, prompt:, **parameters)
  with_conversation(gateway, **parameters) do |chat|
    request = chat.query(prompt, stream: true)
    request.each { |_, seq| request.cancel if seq == 1 }
    show(outcome_of(request))
    show(outcome_of(chat.query(parameters[:then])))
  end
end

def stream(gateway, prompt:, name: nil, client: nil, **)
  return show_stream(gateway.query(prompt, stream: true, client: client)) if name.nil?

  with_conversation(gateway, name: name, client: client) do |chat|
    show_stream(chat.query(prompt, stream: true))
  end
end

def show_stream(request)
  request.each { |message, seq| show('seq' => seq, 'type' => message['type']) }
  show(outcome_of(request))
end

# Nobody goes through the messages, so nothing is worked through, and no credit goes back.
def slow(gateway, prompt:, client: nil, **)
  show(outcome_of(gateway.query(prompt, stream: true, client: client)))
end

def status(gateway, **) = show('status' => gateway.status)

def resend(gateway, late, prompt:, copies:, client: nil, **)
  request = gateway.query(prompt, client: client)
  (copies - 1).times { request.resend }
  show(outcome_of(request))
  gateway.wait(timeout_s: LISTEN_S) { false }
  again = late.select { |reply| reply['id'] == request.id }
  again.each do |reply|
    show(outcome_of { reply['type'] == 'ERROR' ? raise(Soloist::Error.new(reply)) : reply })
  end
  show('outcomes' => again.size + 1)
end

def play(gateway, late, scenario:, **parameters)
  case scenario
  when 'map' then map(gateway, **parameters)
  when 'shared' then shared(gateway, **parameters)
  when 'cancel' then cancel(gateway, **parameters)
  when 'stream' then stream(gateway, **parameters)
  when 'slow' then slow(gateway, **parameters)
  when 'status' then status(gateway, **parameters)
  when 'resend' then resend(gateway, late, **parameters)
  else abort("no scenario #{scenario}")
  end
end

keys = %w[server_key public_key secret_key].to_h { |key| [key.to_sym, ENV["SOLOIST_#{key.upcase}"]] }
parameters = JSON.parse($stdin.read, symbolize_names: true)
late = []
gateway = Soloist::Client.new(ARGV.fetch(0), curve: keys[:server_key] && keys) do |reply|
  late << reply if %w[RESULT ERROR].include?(reply['type'])
end
begin
  play(gateway, late, **parameters)
ensure
  gateway.close
end
