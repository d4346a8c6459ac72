import { totalmem } from 'node:os'

/** Part of the machine's memory that may be pinned when nobody says how much. */
const DEFAULT_FRACTION = 0.8

/** 80 % of the memory that this process may have: the machine's, or its control group's. */
export function defaultBudgetBytes(): number {
  const limit = process.constrainedMemory()
  const machine = totalmem()
  const bytes = limit > 0 && limit < machine ? limit : machine
  return Math.floor(bytes * DEFAULT_FRACTION)
}
