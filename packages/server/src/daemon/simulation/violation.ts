/** Something that must never happen has happened in a simulation. */
export class Violation extends Error {}

/** What is told of a simulation: everything that breaks a rule, and, where it is asked for, every step. */
export interface Witness {
  /** The first one counts. */
  violated(message: string): void
  trace(line: () => string): void
}
