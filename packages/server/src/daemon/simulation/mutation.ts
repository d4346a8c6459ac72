import { type SimulateOptions, simulateSeed } from './simulate.ts'

const SEEDS_MOST = 1500

/** A method, or what a getter is. */
export type Original = (this: unknown, ...given: unknown[]) => unknown

/** What is broken on purpose. */
export interface Mutation {
  readonly name: string
  /** What it replaces, and by what. */
  readonly of: object
  readonly member: string
  readonly by: (original: Original) => unknown
  /** What it takes for it to matter, where that is seldom. */
  readonly change?: SimulateOptions['change']
  /** How the simulation tells of it. */
  readonly seen: RegExp
  /** What the daemon's own checks may say of it in other seeds. */
  readonly also?: RegExp
}

/** In place of what does something. */
export const nothing = () => () => {}

/** Returns what puts the original back. */
function replace({ of, member, by }: Mutation): () => void {
  const before = Object.getOwnPropertyDescriptor(of, member)
  if (before === undefined) throw new Error(`there is no ${member}`)
  const isGetter = before.get !== undefined
  const mutant = by((before.get ?? before.value) as Original)
  Object.defineProperty(of, member, {
    configurable: true,
    ...(isGetter ? { get: mutant as () => unknown } : { value: mutant, writable: true }),
  })
  return () => Object.defineProperty(of, member, before)
}

/** What the first seeds say that something is wrong; empty: none. */
export function firstViolation(mutation: Mutation): string {
  const restore = replace(mutation)
  try {
    for (let seed = 1; seed <= SEEDS_MOST; seed++) {
      const { violation } = simulateSeed(seed, { change: mutation.change })
      if (violation !== null && !mutation.also?.test(violation)) return violation
    }
    return ''
  } finally {
    restore()
  }
}
