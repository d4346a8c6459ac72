import { CkptError, isTheWorkers } from '@ckpt/core'
import { tensorBytes, torchView } from '@ckpt/core/safetensors/dtypes'
import { type EngineMessage, readEngineMessage } from '@ckpt/core/engine/pickle-reader'
import { pickleTransferHandle, type RingHandle } from '@ckpt/core/engine/pickle-writer'
import { ZmqContext, type ZmqMonitor, type ZmqSocket } from '@ckpt/cuda'
import type { UpdateVerdict } from './adapter.ts'
import type { EngineClient, EngineReply } from './client.ts'
import { reasonOf } from './client.ts'
import { versionOf } from './vllm-version.ts'
import { STARTED_WITH } from './vllm-ways.ts'

/** How often the rank is asked for its next message: a list takes an engine some ten milliseconds. */
const LOOK_MS = 1
const KEPT_LOOK_MS = 100
/** A reply on its way when the socket closes gets this long. */
const LINGER_MS = 2000
const SUCCESS = new Uint8Array(0)

type Listed = Extract<EngineMessage, { type: 'list' }>['tensors'][number]

/** One update of one engine of one rank. */
export interface NativeUpdate {
  readonly client: EngineClient
  /** `GPU-<uuid>` of its device. */
  readonly uuid: string
  /** Where its rank waits for the engine's worker. */
  readonly address: string
  readonly weightVersion: string | null
  /** Its last transfer is known to have come to its end. */
  readonly ended: boolean
}

/** With the status of the last answer; 0: there was none. */
export interface NativeVerdict extends UpdateVerdict {
  readonly status: number
}

/** Of all of them: to end one would wait for what is on its way. */
let context: ZmqContext | null = null

/**
 * An update through vLLM's own weight transfer (`--weight-transfer-config '{"backend":"ipc"}'`, wire facts in `docs/engines.md`):
 * speaks to the rank as an engine's worker does, in the dialect D4, and hands each list on as a chunk of vLLM's packed form, of
 * which its worker clones every tensor before it answers. Never rejects.
 *
 * What vLLM has not answered it may still read: until it has, the rank gets no reply, so that the ring is kept, however long after
 * the update.
 *
 * @param signal ends it; not the end of the update: that the rank tells
 */
export async function updateNatively(
  update: NativeUpdate,
  signal: AbortSignal,
): Promise<NativeVerdict> {
  const { client, address } = update
  let rank: RankSocket | null = null
  try {
    const packedAtInit = await initTransfer(client, signal)
    context ??= new ZmqContext()
    rank = new RankSocket(context, address)
    await new NativeTransfer(update, packedAtInit, rank, signal).run()
    return { ...UNKNOWN, ok: true, status: 200, message: '' }
  } catch (error) {
    const { message } = CkptError.wrap(error)
    const call = error instanceof CallError ? error : null
    if (rank !== null && call?.mayRead) {
      void keep(rank, message, signal)
      rank = null
    }
    rank?.reply(new TextEncoder().encode(message || 'it failed'))
    return { ...UNKNOWN, ok: false, status: call?.answered ?? 0, message }
  } finally {
    rank?.close()
  }
}

/**
 * Before the rank hears of a worker, so that what is wrong with the server is all that is said.
 *
 * @returns whether chunks are packed was told with it: newer versions are told so, older ones with each chunk
 */
async function initTransfer(client: EngineClient, signal: AbortSignal): Promise<boolean> {
  await requireOneRank(client, signal)
  const version = await versionOf(client, signal)
  // what is built from its sources calls itself 0.1 or dev
  const isKnown = version?.atLeast(0, 2) === true
  if (isKnown && !version.atLeast(0, 22)) {
    const message = `vLLM ${version.text} takes no packed weights through CUDA IPC, its own weight transfer does since 0.22: load a worker extension (--worker-extension-cls)`
    throw new CallError(200, message)
  }
  const path = '/init_weight_transfer_engine'
  const init = (info: object) => client.post(path, { init_info: info }, signal)
  const atInit = !isKnown || version.atLeast(0, 27)
  let reply = await init(atInit ? { packed: true } : {})
  if (reply.ok) return atInit
  if (!isKnown) reply = await init({})
  if (reply.ok) return false
  throw new CallError(reply.status, `${path}: ${reply.words}; ${STARTED_WITH}`)
}

/** A worker of a larger engine would not find its device in the chunks, and raise. */
async function requireOneRank(client: EngineClient, signal: AbortSignal): Promise<void> {
  const { ok, json } = await client.get('/get_world_size?include_dp=true', signal)
  const { world_size: size } = (json ?? {}) as { world_size?: unknown }
  if (!ok || typeof size !== 'number' || size === 1) return
  const message = `its own weight transfer is used for engines of one rank, and ${client.base} has ${size}: tell all of its ranks, and start it with a worker extension`
  throw new CallError(200, message)
}

/** Its worker tells none of these. */
const UNKNOWN = { structured: false, reload: null }
/** Calls in which its worker reads the ring. */
const READING: readonly string[] = ['/update_weights', '/finish_weight_update']
/** For a worker whose call was not answered, unless its engine is seen to be another one. */
const KEPT_MS = 60_000

async function keep(rank: RankSocket, message: string, signal: AbortSignal): Promise<void> {
  try {
    for (let keptMs = 0; keptMs < KEPT_MS && !signal.aborted; keptMs += KEPT_LOOK_MS) {
      await Bun.sleep(KEPT_LOOK_MS)
    }
    rank.reply(new TextEncoder().encode(message))
  } finally {
    rank.close()
  }
}

/** A call that vLLM has not done. */
class CallError extends CkptError {
  /** Status; 0: there was no answer. */
  readonly answered: number
  /** Its worker may still read the ring. */
  readonly mayRead: boolean

  constructor(answered: number, message: string, path = '') {
    super(answered === 0 ? 'engine_unreachable' : 'engine_failed', message)
    this.answered = answered
    this.mayRead = READING.includes(path) && !isTheWorkers({ status: answered })
  }
}

class NativeTransfer {
  readonly #update: NativeUpdate
  readonly #packedAtInit: boolean
  readonly #rank: RankSocket
  readonly #signal: AbortSignal

  constructor(update: NativeUpdate, packedAtInit: boolean, rank: RankSocket, signal: AbortSignal) {
    this.#update = update
    this.#packedAtInit = packedAtInit
    this.#rank = rank
    this.#signal = signal
  }

  async run(): Promise<void> {
    const opened = await this.#rank.next(this.#signal)
    if (opened.type !== 'handle') throw unexpected(opened)
    const { handle, bytes, counter } = opened
    this.#rank.reply(SUCCESS)
    await this.#transfer({ handle, bytes, refcounter: counter.file })
    const { weightVersion } = this.#update
    const named = weightVersion === null ? {} : { weight_version: weightVersion }
    await this.#post('/finish_weight_update', named)
    // the ring may go: since 0.30 it was mapped until now
    this.#rank.reply(SUCCESS)
    const last = await this.#rank.next(this.#signal)
    if (last.type !== 'none') throw unexpected(last)
    this.#rank.reply(SUCCESS)
  }

  /** Until the rank says that there is no more. */
  async #transfer(ring: RingHandle): Promise<void> {
    for (let list = 0; ; list++) {
      const message = await this.#rank.next(this.#signal)
      if (message.type === 'none') return
      if (message.type !== 'list') throw unexpected(message)
      if (list === 0) await this.#start()
      for (const chunk of chunksOf(message.tensors)) await this.#chunk(ring, chunk)
      this.#rank.reply(SUCCESS)
    }
  }

  /**
   * From here on the engine's parameters are taken apart. What a transfer before has left half loaded is put together first, by one that
   * brings nothing: 0.26 forgets after a refused chunk that one was active, begins anew, and goes on with what was loaded then.
   */
  async #start(): Promise<void> {
    if (!this.#update.ended) {
      await this.#begin()
      await this.#post('/finish_weight_update', {})
    }
    await this.#begin()
  }

  async #begin(): Promise<void> {
    const body = { is_checkpoint_format: true }
    try {
      await this.#post('/start_weight_update', body)
    } catch (error) {
      if (!/already active/.test(CkptError.wrap(error).message)) throw error
      await this.#post('/finish_weight_update', {})
      await this.#post('/start_weight_update', body)
    }
  }

  async #chunk(ring: RingHandle, { tensors, offset, bytes }: Chunk): Promise<void> {
    const uuid = this.#update.uuid.replace(/^GPU-/, '')
    const handles = pickleTransferHandle(uuid, ring, { offset, bytes })
    const views = tensors.map(({ dtype, shape }) => torchView(dtype, shape))
    const info = {
      names: tensors.map(({ name }) => name),
      dtype_names: views.map((view) => view?.torch),
      // a view of no dimensions cannot be made of a chunk; vLLM loads one element as a scalar
      shapes: views.map((view) => (view?.shape.length === 0 ? [1] : view?.shape)),
      tensor_sizes: tensors.map(bytesOf),
      ipc_handles_pickled: handles.toBase64(),
      ...(this.#packedAtInit ? {} : { packed: true }),
    }
    await this.#post('/update_weights', { update_info: info })
  }

  /** @throws CallError */
  async #post(path: string, body: unknown): Promise<void> {
    const { ok, status, words } = await this.#answer(path, body)
    if (ok) return
    throw new CallError(status, status === 0 ? words : `${path} answered ${status}: ${words}`, path)
  }

  async #answer(
    path: string,
    body: unknown,
  ): Promise<Pick<EngineReply, 'ok' | 'status' | 'words'>> {
    try {
      return await this.#update.client.post(path, body, this.#signal)
    } catch (error) {
      return { ok: false, status: 0, words: CkptError.wrap(error).message }
    }
  }
}

interface Chunk {
  readonly tensors: readonly Listed[]
  /** In the ring, bytes. */
  readonly offset: number
  readonly bytes: number
}

/** What lies in the ring without a gap; tensors without elements are left out, which no model has. */
export function chunksOf(tensors: readonly Listed[]): Chunk[] {
  const chunks: { tensors: Listed[]; offset: number; bytes: number }[] = []
  for (const tensor of tensors) {
    const bytes = bytesOf(tensor)
    if (bytes === 0) continue
    const last = chunks.at(-1)
    if (last !== undefined && last.offset + last.bytes === tensor.offset) {
      last.tensors.push(tensor)
      last.bytes += bytes
    } else chunks.push({ tensors: [tensor], offset: tensor.offset, bytes })
  }
  return chunks
}

function bytesOf({ dtype, shape }: Listed): number {
  return tensorBytes(dtype, shape) ?? 0
}

function unexpected(message: EngineMessage): CkptError {
  if (message.type === 'error') return new CkptError('aborted', message.text)
  return new CkptError('engine_protocol', `the rank sends a ${message.type} out of turn`)
}

/** A worker's end of the conversation with a rank. */
class RankSocket {
  readonly #socket: ZmqSocket
  readonly #monitor: ZmqMonitor
  #owes = false

  constructor(context: ZmqContext, address: string) {
    this.#socket = context.socket('REP')
    this.#socket.setOption('linger', LINGER_MS)
    this.#monitor = this.#socket.monitor()
    try {
      this.#socket.connect(address)
    } catch (error) {
      this.close()
      throw error
    }
  }

  /** @throws CkptError what the signal was aborted with; `aborted` when the rank has closed its end, or has ended */
  async next(signal: AbortSignal): Promise<EngineMessage> {
    for (;;) {
      const body = this.#socket.recv()?.at(-1)
      if (body !== undefined) {
        this.#owes = true
        return readEngineMessage(body)
      }
      if (signal.aborted) throw reasonOf(signal)
      if (this.#monitor.next()?.event === 'disconnected') {
        throw new CkptError('aborted', 'the rank has closed the conversation')
      }
      await Bun.sleep(LOOK_MS)
    }
  }

  /** Nothing when no message waits for one. */
  reply(body: Uint8Array): void {
    if (this.#owes) this.#socket.send([body])
    this.#owes = false
  }

  close(): void {
    this.#monitor.close()
    this.#socket.close()
  }
}
