import type {
  ConversationAction,
  ConversationEvent,
  ConversationOptions,
  ConversationPhase,
} from './conversation-types.ts'

export declare class Conversation {
  constructor(options: ConversationOptions)
  readonly phase: ConversationPhase
  readonly deadlineMs: number | null
  step(event: ConversationEvent): ConversationAction[]
}
