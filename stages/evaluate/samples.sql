select base_answers.id,
       base_answers.question,
       base_answers.reference,
       base_answers.prediction as base_prediction,
       tuned_answers.prediction as tuned_prediction,
       base_score.exact_match as base_exact_match,
       tuned_score.exact_match as tuned_exact_match,
       base_score.f1 as base_f1,
       tuned_score.f1 as tuned_f1,
       base_agreement.choice as base_agreement,
       tuned_agreement.choice as tuned_agreement,
       base_embed.similarity as base_similarity,
       tuned_embed.similarity as tuned_similarity
from base_answers
join tuned_answers using (id)
join base_score using (id)
join tuned_score using (id)
join base_agreement using (id)
join tuned_agreement using (id)
join base_embed using (id)
join tuned_embed using (id)
