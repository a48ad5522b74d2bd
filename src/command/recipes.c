/* recipes.c - named recipes: a table of defaults, put into the options before anything looks at them.
 *
 * After that nothing knows of recipes: effective-config.json and the plan hold the options that they stand for. What
 * was given on the command line or by a configuration file wins. */
#include "command/recipes.h"

#include <string.h>

const mdp_recipe mdp_recipes[] = {
    {"seer",
     "recipe: heavy hitters by gate weight, all layers ranked together (after SEER-MoE, 2404.05089; its second aim is "
     "--top-k)",
     "{\"method\": \"soft\", \"budget\": \"global\"}"},
    {"hc-smoe", "recipe: experts with near mean outputs are merged by their tokens (after HC-SMoE, 2410.08589)",
     "{\"method\": \"frequency\", \"merge\": \"frequency\", \"group\": \"hierarchical\", \"linkage\": \"average\", "
     "\"group-by\": \"output-mean-euclidean\"}"},
    {"m-smoe",
     "recipe: experts join the most like of those that most tokens use, over all layers (after M-SMoE, 2310.01334)",
     "{\"method\": \"frequency\", \"budget\": \"global\", \"merge\": \"frequency\", \"group\": \"dominant\", "
     "\"group-by\": "
     "\"router-logit\", \"align\": \"weight\"}"},
    {"uncurl", "recipe: spectral groups of router logits, aligned and merged by their tokens (after UNCURL)",
     "{\"method\": \"frequency\", \"merge\": \"frequency\", \"group\": \"spectral\", \"group-by\": \"router-logit\", "
     "\"align\": \"weight\"}"},
    {"moe-pruner",
     "recipe: weights of least size times gated norm of their channel become 0, all experts stay unless a number says "
     "otherwise (after MoE-Pruner, 2410.12013); --sparsity or --nm",
     "{\"method\": \"reap\", \"mask\": \"moe-pruner\"}"},
    {"wanda", "recipe: the same by norms over tokens without their weights (after Wanda, 2306.11695)",
     "{\"method\": \"reap\", \"mask\": \"wanda\"}"},
    {"dek",
     "recipe: groups that know the same, by centred kernel alignment, merged with their router rows (after "
     "'Diversifying the Expert Knowledge', 2407.09590)",
     "{\"method\": \"frequency\", \"merge\": \"mean\", \"group\": \"partition\", \"group-by\": \"cka-linear\"}"},
    {"grape", "recipe: layers whose experts are most alike merge most (after GRAPE, 2604.06542)",
     "{\"method\": \"frequency\", \"budget\": \"grape\", \"merge\": \"frequency\", \"group\": \"hierarchical\", "
     "\"linkage\": \"average\", \"group-by\": \"output-cosine\"}"},
    {"dek-weights",
     "recipe: dek by what experts do without activation, in place of outputs (its model-centric variant)",
     "{\"method\": \"frequency\", \"merge\": \"mean\", \"group\": \"partition\", \"group-by\": "
     "\"weight-surrogate\"}"},
    {"mergemoe",
     "recipe: experts of like weights are merged by their tokens, and their down projections fitted to what the "
     "members "
     "gave (after MergeMoE, 2510.14436)",
     "{\"method\": \"frequency\", \"merge\": \"least-squares\", \"group\": \"hierarchical\", \"linkage\": \"average\", "
     "\"group-by\": \"weight-cosine\"}"},
    {"ream",
     "recipe: experts join the best ones that are like them by weighted outputs and router logits, matched and merged "
     "by "
     "their scores (after REAM; layers are judged on the original's inputs, and neurons matched by weights)",
     "{\"method\": \"reap\", \"merge\": \"saliency\", \"group\": \"centroid\", \"group-by\": \"gated-output-logit\", "
     "\"align\": \"weight\", \"merge-router\": \"dominant\"}"},
    {"dern",
     "recipe: experts of the least gate weight go, and their neurons join those of others that are like them (after "
     "DERN, "
     "2509.10377)",
     "{\"method\": \"soft\", \"merge\": \"dern\"}"},
    {"enp",
     "recipe: all experts stay, and keep the neurons with the largest share of their outputs (after TENP, "
     "2606.09885); say how many with --keep-neurons",
     "{\"method\": \"frequency\", \"neurons\": \"enp\"}"},
    {"act", "recipe: all experts stay, and keep the neurons of most energy; say how many with --keep-neurons",
     "{\"method\": \"frequency\", \"neurons\": \"act\"}"},
};
const int mdp_n_recipe = (int)(sizeof mdp_recipes / sizeof mdp_recipes[0]);

static const mdp_recipe *find(const mdp_option_value *method) {
    for (int i = 0; method->present && i < mdp_n_recipe; i++) {
        if (strcmp(mdp_recipes[i].name, method->text) == 0) return &mdp_recipes[i];
    }
    return NULL;
}

/* The options of the recipe as they are in force now: " --method soft --budget global". */
static mdp_status describe(const mdp_options *options, const mdp_recipe *recipe, const json_t *list, char **line) {
    const char *name;
    json_t *value;
    MDP_TRY(mdp_format(line, "method %s stands for", recipe->name));
    json_object_foreach((json_t *)list, name, value) {
        for (int i = 0; i < options->n_option; i++) {
            if (!options->table[i].name || strcmp(options->table[i].name, name) != 0) continue;
            char *longer = NULL;
            MDP_TRY(mdp_format(&longer, "%s --%s %s", *line, name, options->values[i].text));
            mdp_free(*line);
            *line = longer;
        }
    }
    return mdp_ok();
}

mdp_status mdp_recipe_expand(mdp_options *options, int method, char **line) {
    const mdp_recipe *recipe = find(&options->values[method]);
    char *text = NULL;
    json_t *root = NULL;
    *line = NULL;
    if (!recipe) return mdp_ok();
    MDP_TRY(mdp_format(&text, "{\"options\": %s}", recipe->options));
    options->values[method].given = false; /* the criterion takes the place of the name */
    mdp_status status = mdp_options_configure(options, text, (int64_t)strlen(text), recipe->name);
    if (status.code == MDP_OK) status = mdp_json_parse(text, (int64_t)strlen(text), recipe->name, &root);
    if (status.code == MDP_OK) status = describe(options, recipe, json_object_get(root, "options"), line);
    json_decref(root);
    mdp_free(text);
    return status;
}
