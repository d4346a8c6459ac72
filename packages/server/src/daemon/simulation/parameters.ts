import type { ExpectedTensor } from './checkpoint.ts'
import { ipcHandle } from './ipc-handle.ts'
import { layOut, type ParameterLayout, type Piece, type Shard } from './parameter-layout.ts'
import type { SharedDevices } from './shared-devices.ts'
import { TracedMemory } from './traced-memory.ts'

/** Where every tensor of a version comes from. */
export type Version = ReadonlyMap<string, ExpectedTensor>

/** Device memory of an engine's worker that other processes can open. */
export interface SharedAllocation {
  readonly memory: TracedMemory
  /** What it takes to open it. */
  readonly openMs: number
  /** How often its worker was asked where it is. */
  readonly looks: number
  /** A copy into it is enqueued. What this returns is called whenever the copy goes on. `looks`: those when it was opened. */
  write(looks: number): () => void
}

/** What the worker does with its weights. */
type State =
  /** It serves them: nobody else may write. */
  | 'serves'
  /** It holds them still for a daemon that copies. */
  | 'still'
  /** It loads them out of a ring. */
  | 'loads'
  /** An update has failed half way, and no other one has begun since. Copies of that one may go on. */
  | 'torn'
  /** Its process has ended: what others have open of its memory is nobody's. */
  | 'dead'

/** Some allocations take long. */
const OPEN_MS = 20

/** The weights of one engine worker, as long as its process lives. It sees to it that nobody writes them at the wrong time. */
export class Parameters {
  readonly #devices: SharedDevices
  readonly #name: string
  readonly #shard: Shard
  readonly #heals: boolean
  #state: State = 'serves'
  /** Updates that have begun to change them. */
  #updates = 0
  /** How often a daemon has asked where they lie, and when they were torn. */
  #looks = 0
  #tornLooks = 0
  /** An update has gone through, so that it is known where everything lies. */
  #placed = false
  #wasTorn = false
  /** Since it was held still. */
  #copied = false
  /** Whose sizes they have. */
  #of: Version | null = null
  #layout: ParameterLayout | null = null
  #memories: readonly TracedMemory[] = []
  #handles: readonly number[] = []
  #pieces = new Map<string, Piece[]>()

  /** @param heals whether a daemon may copy over them when they are torn, as of the reference engine; vLLM's worker refuses */
  constructor(devices: SharedDevices, name: string, shard: Shard, heals: boolean) {
    this.#heals = heals
    this.#devices = devices
    this.#name = name
    this.#shard = shard
  }

  get torn(): boolean {
    return this.#state === 'torn' || this.#state === 'still' || this.#state === 'loads'
  }

  /** Why no daemon can copy into them; null: one can. */
  get notPlaced(): string | null {
    if (this.torn && !this.#heals) return 'the last update has failed half way'
    return this.#placed ? null : 'no update has gone through'
  }

  /** Of the memory that they lie in. */
  get generation(): string {
    return this.#handles.join()
  }

  /** A daemon asks where they lie. */
  look(): void {
    this.#looks++
  }

  /** What a daemon is told that does not know this map; the map is empty for one that does. */
  placement(known: unknown) {
    const { map, digest } = this.#layout as ParameterLayout
    const handles = this.#handles.map((handle) => ipcHandle(handle).toHex())
    const head = { ok: true, generation: this.generation, handles, map: digest }
    return { head, map: known === digest ? new Uint8Array(0) : map }
  }

  /** A daemon may copy from now on. */
  holdStill(): void {
    this.#wasTorn = this.#state === 'torn'
    this.#copied = false
    this.#begin('still')
  }

  /** A worker is to load a version out of a ring. */
  load(version: Version): void {
    this.#begin('loads')
    if (!this.#fits(version)) this.#place(version)
  }

  #begin(state: State): void {
    this.#updates++
    this.#state = state
  }

  #fits(version: Version): boolean {
    const sizes = (of: Version) => [...of].map(([name, { bytes }]) => `${name} ${bytes}`).join()
    return this.#of !== null && sizes(this.#of) === sizes(version)
  }

  #place(version: Version): void {
    const { random } = this.#devices
    this.#of = version
    this.#layout = layOut(version, this.#shard, random)
    this.#pieces = new Map()
    for (const piece of this.#layout.pieces) {
      const known = this.#pieces.get(piece.name)
      if (known === undefined) this.#pieces.set(piece.name, [piece])
      else known.push(piece)
    }
    this.#allocate(this.#layout.allocationBytes.map((bytes) => new TracedMemory(bytes)))
  }

  #allocate(memories: readonly TracedMemory[]): void {
    this.#giveBack()
    const { allocations } = this.#devices
    this.#memories = memories
    this.#handles = memories.map((memory) => {
      const handle = this.#devices.handle()
      allocations.set(handle, this.#share(memory))
      return handle
    })
  }

  #giveBack(): void {
    for (const memory of this.#memories) memory.freed = true
    for (const handle of this.#handles) this.#devices.allocations.delete(handle)
    this.#handles = []
  }

  #share(memory: TracedMemory): SharedAllocation {
    const looksNow = () => this.#looks
    const { random } = this.#devices
    return {
      memory,
      openMs: random.chance(0.2) ? random.between(0, OPEN_MS) : 0,
      get looks() {
        return looksNow()
      },
      write: (looks) => {
        // what an update before has torn is not this one's to go on with
        if (this.#state === 'torn' && looks > this.#tornLooks) this.#violated()
        const updates = this.#updates
        this.#copied = true
        const check = () => this.#checkWrite(memory, updates)
        check()
        return check
      },
    }
  }

  #checkWrite(memory: TracedMemory, updates: number): void {
    if (this.#state === 'dead') return
    if (memory.freed) {
      return this.#devices.witness.violated(`${this.#name} has given back memory that is written`)
    }
    const may = this.#state === 'still' || this.#state === 'torn'
    if (!may || updates !== this.#updates) this.#violated()
  }

  #violated(): void {
    const words = `a copy into ${this.#name}, which does not hold still for it (${this.#state})`
    this.#devices.witness.violated(words)
  }

  /** Out of a ring. */
  take(name: string, { buffer, offset }: ExpectedTensor): void {
    for (const piece of this.#pieces.get(name) ?? []) {
      const memory = this.#memories[piece.allocation] as TracedMemory
      for (let row = 0; row < piece.height; row++) {
        const to = piece.destination + row * piece.destinationPitch
        memory.write(to, piece.width, buffer, offset + piece.source + row * piece.sourcePitch)
      }
    }
  }

  /** They are whole again. */
  serve(): void {
    this.#state = 'serves'
    this.#placed = true
  }

  /** It was held still, and a daemon says that nothing was copied. Returns whether it is whole. */
  goOn(): boolean {
    if (this.#copied) {
      const words = `${this.#name} is told that nothing was copied, and something was`
      this.#devices.witness.violated(words)
    }
    if (this.#wasTorn) this.tear()
    else this.#state = 'serves'
    return !this.#wasTorn
  }

  /** The update that was at it has failed. */
  tear(): void {
    this.#tornLooks = this.#looks
    this.#state = 'torn'
  }

  /** They lie somewhere else from now on, as after an engine that has slept. */
  move(): void {
    const moved = this.#memories.map((from) => {
      const to = new TracedMemory(from.bytes)
      to.copy(from, 0, from.bytes)
      return to
    })
    this.#allocate(moved)
  }

  /** Its process ends. */
  die(): void {
    this.#state = 'dead'
    this.#giveBack()
  }

  /** Never written since its process began. */
  get blank(): boolean {
    return this.#memories.every((memory) => memory.blank)
  }

  /** Whether every byte is of this version. */
  holds(version: Version): boolean {
    if (!this.#fits(version)) return false
    return [...this.#pieces].every(([name, pieces]) => {
      const one = version.get(name)
      return one !== undefined && pieces.every((piece) => this.#holdsPiece(piece, one))
    })
  }

  #holdsPiece(piece: Piece, { buffer, offset }: ExpectedTensor): boolean {
    const memory = this.#memories[piece.allocation] as TracedMemory
    for (let row = 0; row < piece.height; row++) {
      const at = piece.destination + row * piece.destinationPitch
      const from = offset + piece.source + row * piece.sourcePitch
      if (!memory.holds(at, piece.width, buffer, from)) return false
    }
    return true
  }
}
