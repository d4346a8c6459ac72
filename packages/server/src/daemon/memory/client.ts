import { CkptError } from '@ckpt/core/api/errors'
import { HostMemoryError } from './host-memory-error.ts'
import type {
  MemoryCall,
  MemoryCalls,
  MemoryMessage,
  MemoryRequest,
  StartRequest,
} from './protocol.ts'

interface Pending {
  readonly resolve: (answer: never) => void
  readonly reject: (error: CkptError) => void
}

/** The main thread's end of the memory Worker. Failures arrive as CkptError; when the Worker dies, all as `internal`. */
export class MemoryClient {
  readonly #worker: Worker
  readonly #pending = new Map<number, Pending>()
  readonly #broken: (part: number, path: string) => void
  #nextId = 1
  #pinnedBytes = 0
  #dead: CkptError | null = null

  private constructor(broken: (part: number, path: string) => void) {
    this.#broken = broken
    this.#worker = new Worker(new URL('./worker.ts', import.meta.url).href, { name: 'memory' })
    this.#worker.onmessage = (event: MessageEvent<MemoryMessage>) => this.#receive(event.data)
    this.#worker.onerror = (event) => this.#die(`the memory Worker failed: ${event.message}`)
    this.#worker.addEventListener('close', () => this.#die('the memory Worker has ended'))
  }

  /** `broken`: a file that a part holds in place was changed. */
  static async start(
    request: StartRequest,
    broken: (part: number, path: string) => void,
  ): Promise<MemoryClient> {
    const client = new MemoryClient(broken)
    try {
      await client.call('start', request)
      return client
    } catch (error) {
      client.terminate()
      throw error
    }
  }

  /** Pinned bytes as of the last answer. */
  get pinnedBytes(): number {
    return this.#pinnedBytes
  }

  call<K extends MemoryCall>(
    call: K,
    request: MemoryCalls[K]['request'],
  ): Promise<MemoryCalls[K]['answer']> {
    if (this.#dead !== null) return Promise.reject(this.#dead)
    const id = this.#nextId++
    const { promise, resolve, reject } = Promise.withResolvers<MemoryCalls[K]['answer']>()
    this.#pending.set(id, { resolve, reject })
    this.#worker.postMessage({ id, call, request } as MemoryRequest)
    return promise
  }

  terminate(): void {
    this.#die('the memory Worker has ended')
    this.#worker.terminate()
  }

  #receive(message: MemoryMessage): void {
    if (message.type === 'broken') return this.#broken(message.part, message.path)
    this.#pinnedBytes = message.pinnedBytes
    const pending = this.#pending.get(message.id)
    if (pending === undefined) return
    this.#pending.delete(message.id)
    if (message.type === 'answer') pending.resolve(message.answer as never)
    else if (message.memory === null) pending.reject(CkptError.from(message.failure))
    else pending.reject(HostMemoryError.of(message.failure, message.memory))
  }

  #die(reason: string): void {
    if (this.#dead !== null) return
    this.#dead = new CkptError('internal', reason)
    for (const { reject } of this.#pending.values()) reject(this.#dead)
    this.#pending.clear()
  }
}
