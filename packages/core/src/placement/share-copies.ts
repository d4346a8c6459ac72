import type { DirectCopy } from './direct-copy.ts'
import { type FragmentedCopies, fragment } from './fragments.ts'
import { type DirectPlan, groupsOf } from './plan-direct.ts'
import type { Share } from './shares.ts'

/** The copies of a plan, with the fragments that ranks can bring each other. */
export interface FragmentedPlan {
  readonly own: FragmentedCopies
  readonly fetched: FragmentedCopies
  /** The copy of each fragment. */
  readonly fragments: readonly DirectCopy[]
}

/** What is left of a plan when a part of it comes from other ranks. */
export interface SharedPlan {
  readonly plan: DirectPlan
  /** Of each of its copies the fragment that others take; -1: none. */
  readonly given: Int32Array
  /** The same of what is fetched, ascending by owner and source as the copies are. */
  readonly givenFetched: readonly number[]
  /** Bytes that come from other ranks. */
  readonly takenBytes: number
}

/** Its own host's first, then what is fetched; no more than `countMax`. */
export function fragmentPlan(plan: DirectPlan, countMax: number): FragmentedPlan {
  const own = fragment(plan.copies, 0, countMax)
  const ofOwn = fragmentsOf(own)
  const fetched = fragment(plan.fetched, ofOwn.length, countMax)
  return { own, fetched, fragments: [...ofOwn, ...fragmentsOf(fetched)] }
}

function fragmentsOf({ copies, fragments }: FragmentedCopies): DirectCopy[] {
  return copies.filter((_, index) => fragments[index] !== -1)
}

/** Leaves out what is taken. */
export function sharePlan(
  plan: DirectPlan,
  { own, fetched, fragments }: FragmentedPlan,
  { taken, given }: Share,
): SharedPlan {
  const isTaken = new Set(taken.map((one) => one.fragment))
  const isGiven = new Set(given)
  const rest = ({ copies, fragments: of }: FragmentedCopies) => {
    const left = [...copies.keys()].filter((index) => !isTaken.has(of[index] as number))
    const numbers = left.map((index) => of[index] as number)
    return {
      copies: left.map((index) => copies[index] as DirectCopy),
      given: numbers.map((number) => (isGiven.has(number) ? number : -1)),
    }
  }
  const [ofOwn, ofFetched] = [rest(own), rest(fetched)]
  const takenBytes = taken.reduce((sum, one) => sum + (fragments[one.fragment]?.width ?? 0), 0)
  return {
    plan: {
      copies: ofOwn.copies,
      groups: groupsOf(ofOwn.copies),
      staging: plan.staging,
      fetched: ofFetched.copies,
      bytes: plan.bytes - takenBytes,
    },
    given: Int32Array.from(ofOwn.given),
    givenFetched: ofFetched.given.filter((number) => number !== -1),
    takenBytes,
  }
}
