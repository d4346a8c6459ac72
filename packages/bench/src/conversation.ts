import { join } from 'node:path'
import {
  Conversation,
  type ConversationAction,
  type ConversationEvent,
  makePlan,
  pickleHandle,
  pickleList,
} from '@ckpt/core'
import { ZmqContext, zmqPoll } from '@ckpt/cuda'
import { EngineSocket } from 'ckpt/daemon/rank/engine-socket'
import { modelTensors } from 'ckpt/cli/model-shapes'
import type { Bench } from './bench.ts'
import { type EngineTask, Heard } from './conversation-types.ts'
import { layOut } from './models.ts'
import { measureRow } from './row.ts'

/** The planner puts at most 4096 tensors into a bucket. */
const LIST_TENSORS = [1, 399, 4096] as const
const WAIT_MS = 60_000
const LIMITS = { openMs: WAIT_MS, replyMs: WAIT_MS, totalMs: 10 * WAIT_MS, leaveMs: WAIT_MS }
const RING_STEP_BYTES = 2 ** 21

/** From the announcement of a bucket to its acknowledgement: conversation, libzmq and a thread that replies at once. */
export const conversation: Bench = {
  name: 'conversation',
  async *rows({ dir }) {
    for (const tensors of LIST_TENSORS) {
      const list = listOf(tensors)
      await using stack = new AsyncDisposableStack()
      const talk = await Talk.open(stack, join(dir, `engine-${tensors}.sock`))
      yield await measureRow(
        { bench: 'conversation', case: `a list of ${tensors}`, tensors, bytes: list.length },
        {
          // the engine's thread hashes what it has heard after it has replied
          prepare: () => talk.settle(),
          run: () => talk.announce(list),
          check: () => ({ compared: 1, wrong: talk.heardLast(list) ? 0 : 1 }),
        },
      )
      await talk.end()
    }
  },
}

/** A bucket with the first `count` tensors of a large model. */
function listOf(count: number): Uint8Array {
  const shapes = modelTensors('qwen3-30b-a3b').slice(0, count)
  const { table, sources } = layOut('one bucket', shapes)
  const end = (sources[0]?.bytes[0] ?? 0) + RING_STEP_BYTES
  const ringBytes = Math.ceil(end / RING_STEP_BYTES) * RING_STEP_BYTES
  const sizes = { ringBytes, bucketBytes: ringBytes, segmentBytes: ringBytes }
  const plan = makePlan({ table, sources, ownerRanks: [[0]], mode: 'pipelined', ...sizes })
  if (plan.bucketCount !== 1) throw new Error(`${plan.bucketCount} buckets, not one`)
  return pickleList(plan, table, 0)
}

/** The daemon's side of one conversation, as a rank's Worker has it, in this thread. */
class Talk {
  readonly #socket: EngineSocket
  readonly #heard: Heard
  readonly #engineLeft: Promise<void>
  readonly #conversation = new Conversation({
    handle: pickleHandle({ handle: new Uint8Array(64), bytes: 1, refcounter: '/ckpt-bench' }),
    rank: 0,
    limits: LIMITS,
    http: false,
    dialect: 'D4',
  })
  #sent = 0
  #buckets = 0

  private constructor(socket: EngineSocket, heard: Heard, engineLeft: Promise<void>) {
    this.#socket = socket
    this.#heard = heard
    this.#engineLeft = engineLeft
  }

  /** Binds, starts the engine's thread and waits until it has taken the handle. */
  static async open(stack: AsyncDisposableStack, path: string): Promise<Talk> {
    const context = new ZmqContext()
    stack.defer(() => context.close())
    const socket = new EngineSocket(context, `ipc://${path}`)
    stack.defer(() => socket.close())
    const worker = new Worker(new URL('./conversation-engine.ts', import.meta.url).href)
    stack.defer(() => worker.terminate())
    const memory = new SharedArrayBuffer(Heard.BYTES)
    const left = Promise.withResolvers<void>()
    worker.onmessage = () => left.resolve()
    worker.onerror = (event) => left.reject(new Error(event.message))
    // it is awaited at the end only
    left.promise.catch(() => {})
    worker.postMessage({ address: `ipc://${path}`, heard: memory } satisfies EngineTask)
    const talk = new Talk(socket, new Heard(memory), left.promise)
    talk.#perform({ type: 'start', nowMs: performance.now() })
    // a Worker that starts needs this thread
    while (!talk.#turn('opened', 0)) await Bun.sleep(1)
    return talk
  }

  /** Sends a list and waits for the reply. Blocks. */
  announce(list: Uint8Array): void {
    const bucket = this.#buckets++
    this.#perform({ type: 'announce', bucket, list, nowMs: performance.now() })
    while (!this.#turn('acked', WAIT_MS)) continue
  }

  /** Waits until the engine's thread has hashed everything that was sent. Blocks. */
  settle(): void {
    this.#heard.wait(this.#sent, WAIT_MS)
  }

  heardLast(list: Uint8Array): boolean {
    this.settle()
    const sent = new Bun.CryptoHasher('sha256').update(list).digest('hex')
    return this.#heard.count === this.#sent && this.#heard.digest === sent
  }

  async end(): Promise<void> {
    this.#perform({ type: 'end', nowMs: performance.now() })
    while (!this.#turn('close', WAIT_MS)) continue
    await this.#engineLeft
  }

  /** Waits for the peer and takes what it did; whether that led to this action. */
  #turn(wanted: ConversationAction['type'], timeoutMs: number): boolean {
    zmqPoll(this.#socket.pollItems, Math.min(timeoutMs, this.#socket.retryMs ?? timeoutMs))
    this.#socket.flush()
    const seen: ConversationAction['type'][] = []
    for (let link = this.#socket.nextLink(); link !== null; link = this.#socket.nextLink()) {
      // a reply that came before the worker closed belongs before the disconnect
      if (link === 'disconnected') seen.push(...this.#takeReplies())
      seen.push(...this.#perform({ type: link, nowMs: performance.now() }))
    }
    seen.push(...this.#takeReplies())
    const done = seen.includes(wanted)
    if (!done) this.#perform({ type: 'tick', nowMs: performance.now() })
    return done
  }

  #takeReplies(): ConversationAction['type'][] {
    const seen: ConversationAction['type'][] = []
    for (let body = this.#socket.receive(); body !== null; body = this.#socket.receive()) {
      seen.push(...this.#perform({ type: 'reply', body, nowMs: performance.now() }))
    }
    return seen
  }

  #perform(event: ConversationEvent): ConversationAction['type'][] {
    const actions = this.#conversation.step(event)
    for (const action of actions) {
      if (action.type === 'failed') throw new Error(action.failure.message)
      if (action.type !== 'send') continue
      this.#socket.send(action.body)
      this.#sent++
    }
    return actions.map(({ type }) => type)
  }
}
